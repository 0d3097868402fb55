"""Training: rendered and real tiles, target masks, a loop that knows no loss, and the model it leaves."""

from wsiscore.training.cases import Case, Split, read_cases, split_by_case, write_split
from wsiscore.training.data import Draws, Sources
from wsiscore.training.loop import TrainSettings, train
from wsiscore.training.outcome import check_polarity, write_trained
from wsiscore.training.pool import Pool, PoolSettings, render_pool
from wsiscore.training.targets import NUCLEI_SUFFIXES, read_nuclei

__all__ = [
    "NUCLEI_SUFFIXES",
    "Case",
    "Draws",
    "Pool",
    "PoolSettings",
    "Sources",
    "Split",
    "TrainSettings",
    "check_polarity",
    "read_cases",
    "read_nuclei",
    "render_pool",
    "split_by_case",
    "train",
    "write_split",
    "write_trained",
]
