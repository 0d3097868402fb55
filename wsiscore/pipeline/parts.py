"""One slide over several workers, where there are fewer slides than workers.

A first job lays the tiles, and begins the mosaic with what is measured on the slide. Then each part of the slide, some
shards that follow one another, is a job of its own: a shard is written by one process, so no lock is needed. Then cells
are found in blocks of the maps, some blocks a job. The last job is that of any slide: it finds the mosaic as far as it
is done, does what a lost part has not, and goes on to the cells, joined of all blocks if none was lost, and to the
report. So the bytes are those of a run by one worker, and a run that was killed is continued in any way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsiscore.cells.find import rules_of
from wsiscore.cells.rules import BLOCK_PX
from wsiscore.errors import WsiscoreError
from wsiscore.files import locked
from wsiscore.inference import infer_part, open_mosaic
from wsiscore.mosaic import Mosaic
from wsiscore.ome_zarr import TileState
from wsiscore.pipeline.executors import Executor
from wsiscore.pipeline.job import MOSAIC, open_job, part_lock
from wsiscore.pipeline.maps import model_of, prepare, with_chosen
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.slide.slide import Slide
from wsiscore.threads import set_threads

__all__ = ["FoundJob", "compute_parts"]

_PARTS_A_WORKER = 3  # so that a slow worker, or a part with little tissue, keeps no other waiting for long

SlideJob = tuple[Path, ScoreOptions]
FoundJob = tuple[Path, ScoreOptions, list[Any] | None]
"""A slide with what `Rules.pieces` has found in all blocks of its mosaic, if it was found."""


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


def compute_parts(jobs: Sequence[SlideJob], executor: Executor) -> list[FoundJob]:
    """Compute the maps of slides, and find cells in them, over all workers.

    What goes wrong is left to the job that scores the slide.

    Parameters
    ----------
    jobs
        Slides, tile lists or mosaics, each with its options; fewer than there are workers.
    executor
        What runs the parts.
    """
    begun = list(executor.map(_begin, jobs, _nothing))
    slides = [(number, each) for number, each in enumerate(begun) if each is not None]
    n_parts = max(1, executor.workers * _PARTS_A_WORKER // max(1, len(slides)))
    parts = [(each, part) for _, each in slides for part in _split(each.shards, n_parts)]
    for _ in executor.map(_compute, parts, _nothing):
        pass
    blocks = [(number, each, part) for number, each in slides for part in _split(tuple(range(_blocks(each))), n_parts)]
    found: dict[int, list[list[Any] | None]] = {}
    for (number, _, _), pieces in zip(blocks, executor.map(_find, blocks, _nothing), strict=True):
        found.setdefault(number, []).append(pieces)
    return [(*job, _joined(found.get(number, [None]))) for number, job in enumerate(jobs)]


def _split(numbers: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """Return at most n parts of numbers, as even as can be, in their order."""
    return [tuple(part.tolist()) for part in np.array_split(numbers, min(n, len(numbers)))] if numbers else []


def _joined(parts: Sequence[list[Any] | None]) -> list[Any] | None:
    """Return the pieces of all parts; None if one has none, since it was lost or its maps are not complete."""
    known = [part for part in parts if part is not None]
    return [piece for part in known for piece in part] if len(known) == len(parts) else None


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


def _blocks(begun: _Begun) -> int:
    """Return in how many blocks of a slide's maps cells can be found: none if a part was lost."""
    try:
        mosaic = Mosaic.open(begun.mosaic)
        return 0 if mosaic.missing() else len(list(mosaic.blocks(BLOCK_PX)))
    except WsiscoreError:
        return 0


def _find(job: tuple[int, _Begun, tuple[int, ...]]) -> list[Any] | None:
    """Find what some blocks of a slide's maps hold of cells; None if it cannot be."""
    _, begun, part = job
    set_threads(begun.options.threads)
    try:
        mosaic = Mosaic.open(begun.mosaic)
        rules = with_chosen(rules_of(mosaic), str(mosaic.about["model"].get("name")), begun.options.rules)
        blocks = list(mosaic.blocks(BLOCK_PX))
        return rules.pieces(mosaic, [blocks[number] for number in part])
    except WsiscoreError:  # which the job that scores the slide says
        return None


def _nothing(_: object, __: Exception) -> None:
    return None
