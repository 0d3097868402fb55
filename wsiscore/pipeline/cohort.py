"""Many slides: scored by an engine, and gathered in one table and one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from wsiscore.pipeline.engine import Engine
from wsiscore.pipeline.job import out_of
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import try_score
from wsiscore.report.cohort import Entry, write_index
from wsiscore.report.tables import error_row, row, write_scores_csv
from wsiscore.score import SlideScore, Tally
from wsiscore.slide.readers.base import VirtualStain

__all__ = ["fields_of", "score_slides", "write_cohort"]


def score_slides(paths: Iterable[Path], options: ScoreOptions, engine: Engine) -> Iterator[tuple[Path, Entry]]:
    """Score slides and yield each one's OUT folder and entry, in the order given, as soon as they are done.

    Parameters
    ----------
    paths
        Slides, tile lists or mosaics; taken one by one, so that a pipe may still be filling.
    options
        The same for all.
    engine
        What runs the jobs, one a slide. What is wrong with a slide is in its entry.
    """
    if not engine.local:  # a worker may stand in another folder
        options = replace(options, roi=options.roi and options.roi.absolute())
    jobs = ((path, replace(options, out=out_of(path, options).absolute())) for path in paths)
    return engine.map(partial(_score_job, progress=engine.local), jobs)


def _score_job(job: tuple[Path, ScoreOptions], *, progress: bool) -> tuple[Path, Entry]:
    path, options = job
    assert options.out is not None
    return options.out, try_score(path.absolute(), options, progress=progress)


def write_cohort(out: Path, entries: Sequence[Entry]) -> None:
    """Write ``scores.csv`` and ``index.html`` of all that `out` holds: these entries and what earlier runs left.

    So the jobs of an array that each score one slide into the same folder end with the table of them all.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    new = {entry.folder for entry in entries if entry.folder}
    earlier = [
        entry for path in sorted(out.glob("*/score.json")) if (entry := _earlier(path)) and entry.folder not in new
    ]
    together = [*entries, *earlier]
    write_scores_csv(out / "scores.csv", [fields_of(entry) for entry in together])
    write_index(out / "index.html", together)


def fields_of(entry: Entry) -> list[str]:
    """Return an entry as the fields of a row."""
    return row(entry.score) if entry.score else error_row(entry.slide, entry.model, entry.error)


def _earlier(path: Path) -> Entry | None:
    """Return the entry of a ``score.json``, or None if it is none of ours."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        by_roi = {name: _tally(numbers) for name, numbers in values["by_roi"].items()}
        virtual = VirtualStain(**values["virtual"]) if values.get("virtual") else None
        score = SlideScore(path.parent.name, values["model"], _tally(values), by_roi, values["cutoff"], virtual)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Entry(score.slide, score, folder=score.slide)


def _tally(values: dict[str, Any]) -> Tally:
    return Tally(int(values["positive"]), int(values["negative"]), float(values["area_mm2"]))
