"""Many slides: scored by an engine, and gathered in one table and one page.

What is known of a slide lies in its folder, also why it failed. The table and the page of a cohort are made from the
folders, under the lock of the cohort's folder: they are the same whoever makes them last, and in whatever order the
slides were scored.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from wsiscore.files import locked, one_line, remove_parts
from wsiscore.pipeline.engine import Engine
from wsiscore.pipeline.job import out_of
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import ERROR, failed, try_score
from wsiscore.report.json import read_error, read_score
from wsiscore.report.result import Entry
from wsiscore.report.writers import COHORT_WRITERS

__all__ = ["score_slides", "write_cohort"]

_log = logging.getLogger("wsiscore")


def score_slides(paths: Iterable[Path], options: ScoreOptions, engine: Engine) -> Iterator[tuple[Path, Entry]]:
    """Score slides and yield each one's OUT folder and entry, in the order given, as soon as they are done.

    Parameters
    ----------
    paths
        Slides, tile lists or mosaics; taken one by one, so that a pipe may still be filling. One that is given twice
        is scored once.
    options
        The same for all.
    engine
        What runs the jobs, one a slide. What is wrong with a slide is in its entry.
    """
    if not engine.local:  # a worker may stand in another folder
        options = replace(options, roi=options.roi and options.roi.absolute())
    jobs = ((path.absolute(), replace(options, out=out_of(path, options).absolute())) for path in _once(paths))
    return engine.map(partial(_score_job, progress=engine.local), jobs, _lost)


def _once(paths: Iterable[Path]) -> Iterator[Path]:
    seen: set[str] = set()
    for path in paths:
        try:
            real = os.path.realpath(path)
        except ValueError:  # a NUL in the name, which opening it will refuse
            real = str(path)
        if real in seen:
            _log.warning("%s is given twice, and scored once", one_line(str(path)))
            continue
        seen.add(real)
        yield path


def _score_job(job: tuple[Path, ScoreOptions], *, progress: bool) -> tuple[Path, Entry]:
    path, options = job
    return options.out or out_of(path, options), try_score(path, options, progress=progress)


def _lost(job: tuple[Path, ScoreOptions], error: Exception) -> tuple[Path, Entry]:
    path, options = job
    return options.out or out_of(path, options), failed(path, options, error)


def write_cohort(out: Path, entries: Sequence[Entry]) -> None:
    """Write ``scores.csv`` and ``index.html`` of all that `out` holds, by the names of the slides' folders.

    So the jobs of an array that each score one slide into the same folder end with the table of them all.

    Parameters
    ----------
    out
        The folder of the results.
    entries
        Of this run; those whose folder could not be written are added at the end.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    with locked(out):
        remove_parts(out)
        held = list(_held(out))
        together = [*held, *(entry for entry in entries if not entry.folder)]
        for writer in COHORT_WRITERS:
            writer.write(out / writer.name, together)


def _held(out: Path) -> Iterator[Entry]:
    """Yield the entries of the slides whose folder is in `out`, by name; the last failure counts before a score."""
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if error := read_error(folder / ERROR):
            yield error
        elif score := read_score(folder / "score.json"):
            yield Entry(folder.name, replace(score, slide=folder.name), folder=folder.name)
