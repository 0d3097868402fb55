"""Many slides: scored by an executor, and gathered in one table and one page.

What is known of a slide lies in its folder, also why it failed. The table and the page of a cohort are made from the
folders, under the lock of the cohort's folder: they are the same whoever makes them last, and in whatever order the
slides were scored.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from wsiscore.errors import WsiscoreError
from wsiscore.files import locked, one_line, remove_parts
from wsiscore.pipeline.cases import pool_cases
from wsiscore.pipeline.executors import Executor, Processes
from wsiscore.pipeline.failures import ERROR, failed
from wsiscore.pipeline.job import given_slide, out_of, same_names
from wsiscore.pipeline.options import ScoreOptions, SlideOptions
from wsiscore.pipeline.parts import FoundJob, compute_parts
from wsiscore.pipeline.provenance import sha256_of, slide_of
from wsiscore.pipeline.steps import try_score
from wsiscore.report.json import read_error, read_score
from wsiscore.report.result import Entry
from wsiscore.report.writers import CASE_PAGE, CASES, COHORT_WRITERS, write_case_page
from wsiscore.score import SlideScore
from wsiscore.threads import set_threads

__all__ = ["named_apart", "part_of", "rebuild_cohort", "score_slides", "write_cohort"]

_log = logging.getLogger("wsiscore")


def score_slides(
    jobs: Iterable[tuple[Path, ScoreOptions]], executor: Executor, *, progress: bool = True
) -> Iterator[tuple[Path, Entry]]:
    """Score slides and yield each one's OUT folder and entry, in the order given, as soon as they are done.

    Parameters
    ----------
    jobs
        Slides, tile lists or mosaics, each with its options; taken one by one, so that a pipe may still be filling. A
        slide that is given twice for the same folder is scored once.
    executor
        What runs the jobs, one a slide. If there are fewer slides than workers, each slide's maps are computed,
        and cells found in them, by several of them first. What is wrong with a slide is in its entry.
    progress
        Whether an executor in this process shows progress on a terminal.
    """
    own: Iterable[FoundJob] = (
        (path.absolute(), _anywhere(path, options, executor), None) for path, options in _once(jobs)
    )
    n_threads = None
    if isinstance(jobs, Sequence) and len(jobs) < executor.workers:
        own = compute_parts([(path, options) for path, options, _ in own], executor)
        if isinstance(executor, Processes):  # the processes without a slide have nothing more to do
            n_threads = executor.threads * executor.workers // max(1, len(own))
    score = partial(_score_job, progress=progress and executor.local, n_threads=n_threads)
    yield from executor.map(score, own, _lost)


def named_apart(jobs: Sequence[tuple[Path, ScoreOptions]]) -> list[tuple[Path, ScoreOptions]]:
    """Return jobs of which those of slides with one stem get folders of different names, whatever their order."""
    shared: set[Path] = set()
    for out in {options.out for _, options in jobs}:
        some = {path: options for path, options in jobs if options.out == out and not options.name}
        shared |= same_names(some, SlideOptions(out=out))
    return [(path, replace(options, distinct=path in shared and not options.name)) for path, options in jobs]


def part_of(jobs: Sequence[tuple[Path, ScoreOptions]], i: int, n: int) -> list[tuple[Path, ScoreOptions]]:
    """Return the i-th of n parts of jobs, i from 1: every n-th slide, ordered by real path and name.

    So the parts are the same whatever the order in which the slides are given, each slide is in one part, and the parts
    differ in size by one slide at most.
    """
    slides = sorted({_key(job) for job in jobs})
    own = set(slides[i - 1 :: n])
    return [job for job in jobs if _key(job) in own]


def _key(job: tuple[Path, ScoreOptions]) -> tuple[str, str, str]:
    path, options = job
    return given_slide(path), options.name, str(out_of(path, options).absolute())


def _anywhere(path: Path, options: ScoreOptions, executor: Executor) -> ScoreOptions:
    """Return options with whole paths, for a worker that may be in another folder."""
    roi = options.roi if executor.local else options.roi and options.roi.absolute()
    slide = options.slide and options.slide.absolute()
    cells = options.cells and options.cells.absolute()
    return replace(options, out=out_of(path, options).absolute(), roi=roi, slide=slide, cells=cells)


def _once(jobs: Iterable[tuple[Path, ScoreOptions]]) -> Iterator[tuple[Path, ScoreOptions]]:
    seen: set[tuple[str, str, str]] = set()
    for path, options in jobs:
        key = _key((path, options))
        if key in seen:
            _log.warning("%s is given twice, and scored once", one_line(key[0]))
            continue
        seen.add(key)
        yield path, options


def _score_job(job: FoundJob, *, progress: bool, n_threads: int | None) -> tuple[Path, Entry]:
    path, options, pieces = job
    set_threads(n_threads)
    return options.out or out_of(path, options), try_score(path, options, progress=progress, pieces=pieces)


def _lost(job: FoundJob, error: Exception) -> tuple[Path, Entry]:
    path, options, _ = job
    return options.out or out_of(path, options), failed(path, options, error)


def write_cohort(out: Path, entries: Sequence[Entry] = ()) -> list[Entry]:
    """Write ``scores.csv``, ``index.html`` and the cases of all that `out` holds, by the names of the slides' folders.

    So the jobs of an array that each score one slide into the same folder end with the table of them all.

    Parameters
    ----------
    out
        The folder of the results.
    entries
        Of this run; those whose folder could not be written are added at the end.

    Returns
    -------
    list of Entry
        All that the tables hold, in their order.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    with locked(out):
        remove_parts(out)
        together = [*_held(out), *(entry for entry in entries if not entry.folder)]
        cases = pool_cases(out, together)
        for case in cases:
            write_case_page(out, case)
        for page in (out / CASES).glob(f"*/{CASE_PAGE}"):
            if page.parent.name not in {case.folder for case in cases}:  # of a case that has no slide any more
                page.unlink()
        for writer in COHORT_WRITERS:
            if writer.when(cases):
                writer.write(out / writer.name, together, cases)
            else:
                (out / writer.name).unlink(missing_ok=True)
        return together


def rebuild_cohort(out: Path) -> list[Entry]:
    """Write what `write_cohort` writes, of a folder that holds results; WsiscoreError if it holds none."""
    if next(_held(out), None) is None:
        raise WsiscoreError(f"{out} holds no results; wanted a folder that `wsiscore score -o` has written to")
    return write_cohort(out)


def _held(out: Path) -> Iterator[Entry]:
    """Yield the entries of the slides whose folder is in `out`, by name; the last failure counts before a score."""
    for folder in sorted(path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if error := read_error(folder / ERROR):
            yield error
        elif score := read_score(folder / "score.json"):
            yield Entry(folder.name, _identified(score, folder), folder=folder.name)


def _identified(score: SlideScore, folder: Path) -> SlideScore:
    """Return a score by the name of its folder; one of an earlier version with the slide that its record names."""
    if not score.path:
        score = replace(score, path=str(slide_of(folder) or ""), sha256=sha256_of(folder))
    return replace(score, slide=folder.name)
