"""One slide over several workers, where there are fewer slides than workers.

A first job lays the tiles, and begins the mosaic with what is measured on the slide. Then each part of the slide, some
shards that follow one another, is a job of its own: a shard is written by one process, so no lock is needed. The last
job is that of any slide: it finds the mosaic as far as it is done, does what a lost part has not, and goes on to the
cells and the report. So the bytes are those of a run by one worker, and a run that was killed is continued in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsiscore.errors import WsiscoreError
from wsiscore.files import locked
from wsiscore.inference import infer_part, open_mosaic
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.pipeline.executors import Executor
from wsiscore.pipeline.job import MOSAIC, open_job, part_lock
from wsiscore.pipeline.maps import model_of, prepare
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.slide.slide import Slide
from wsiscore.threads import set_threads

__all__ = ["compute_parts"]

_PARTS_A_WORKER = 3  # so that a slow worker, or a part with little tissue, keeps no other waiting for long

SlideJob = tuple[Path, ScoreOptions]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A slide whose mosaic is begun.

    Parameters
    ----------
    slide, mpp
        Its file and its scale.
    options
        As given.
    mosaic
        The folder.
    shards
        Numbers of those with a tile to do.
    """

    slide: Path
    mpp: float
    options: ScoreOptions
    mosaic: Path
    shards: tuple[int, ...]


def compute_parts(jobs: Sequence[SlideJob], executor: Executor) -> None:
    """Compute the maps of slides over all workers; what goes wrong is left to the job that scores the slide.

    Parameters
    ----------
    jobs
        Slides, tile lists or mosaics, each with its options; fewer than there are workers.
    executor
        What runs the parts.
    """
    begun = [each for each in executor.map(_begin, jobs, _nothing) if each is not None and each.shards]
    n_parts = max(1, executor.workers * _PARTS_A_WORKER // max(1, len(begun)))
    parts = [
        (each, part)
        for each in begun
        for some in np.array_split(each.shards, min(n_parts, len(each.shards)))
        if (part := tuple(some.tolist()))
    ]
    for _ in executor.map(_compute, parts, _nothing):
        pass


def _begin(job: SlideJob) -> _Begun | None:
    """Begin the mosaic of a slide; None if nothing is left to compute, or nothing can be."""
    path, options = job
    try:
        with open_job(path, options) as opened:
            if opened.mosaic is not None:
                return None
            tiles, model = prepare(opened, options, picture=False)
            mosaic, _ = open_mosaic(opened.slide, tiles, model, opened.folder / MOSAIC, batch_size=options.batch_size)
            shards = _to_do(mosaic)
            path = opened.slide.path.absolute()
            return _Begun(path, opened.slide.mpp, options, mosaic.path, shards) if shards else None
    except WsiscoreError:  # which the job that scores the slide says
        return None


def _to_do(mosaic: Mosaic) -> tuple[int, ...]:
    states = mosaic.states()
    return tuple(
        number
        for number, shard in enumerate(mosaic.shards())
        if any(states[place] == TileState.TO_DO for place in shard.tiles)
    )


def _compute(job: tuple[_Begun, tuple[int, ...]]) -> None:
    begun, part = job
    set_threads(begun.options.threads)
    with locked(*part_lock(begun.mosaic.parent, part[0])), Slide(begun.slide, begun.mpp) as slide:
        infer_part(slide, model_of(begun.options), begun.mosaic, part, batch_size=begun.options.batch_size)


def _nothing(_: object, __: Exception) -> None:
    return None
