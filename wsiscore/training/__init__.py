"""Training: rendered, real and aligned pictures, target masks, a loop that knows no loss, and the model it leaves."""

from wsiscore.training.cases import Case, Split, read_cases, slide_of_tile, split_by_case, write_split
from wsiscore.training.data import Draws, Sources
from wsiscore.training.loop import TrainSettings, train
from wsiscore.training.outcome import check_polarity, write_trained
from wsiscore.training.pairs import Aligned, PairDraws, Pairs, find_pairs, find_slides, tile_alike
from wsiscore.training.pool import PairPoolSettings, Pool, PoolSettings, render_pool
from wsiscore.training.targets import NUCLEI_SUFFIXES, read_nuclei

__all__ = [
    "NUCLEI_SUFFIXES",
    "Aligned",
    "Case",
    "Draws",
    "PairDraws",
    "PairPoolSettings",
    "Pairs",
    "Pool",
    "PoolSettings",
    "Sources",
    "Split",
    "TrainSettings",
    "check_polarity",
    "find_pairs",
    "find_slides",
    "read_cases",
    "read_nuclei",
    "render_pool",
    "slide_of_tile",
    "split_by_case",
    "tile_alike",
    "train",
    "write_split",
    "write_trained",
]
