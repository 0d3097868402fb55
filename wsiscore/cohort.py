"""Many slides: scored one after the other or over a dask cluster, and gathered in one table and one page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wsiscore.errors import WsiscoreError
from wsiscore.pipeline import Settings, out_of, try_score
from wsiscore.report import Entry, error_row, row, write_index, write_scores_csv
from wsiscore.score import SlideScore, Tally
from wsiscore.sources import VirtualStain

__all__ = ["fields_of", "score_slides", "write_cohort"]

_ANSWERS_WITHIN = "10s"  # a scheduler that is there


def score_slides(
    paths: Iterable[Path], settings: Settings, *, cluster: str | None = None, progress: bool = False
) -> Iterator[tuple[Path, Entry]]:
    """Score slides and yield each one's OUT folder and entry, in the order given, as soon as they are done.

    Parameters
    ----------
    paths
        Slides, tile lists or mosaics; taken one by one, so that a pipe may still be filling.
    settings
        The same for all.
    cluster
        Address of a dask scheduler, such as ``tcp://node1:8786``, whose workers see the same files; a slide is one
        task. By default the slides are scored here, one after the other.
    progress
        Whether to show the progress of each slide on a terminal; here only.

    Raises
    ------
    WsiscoreError
        If there is no scheduler at that address. What is wrong with a slide is in its entry.
    """
    if cluster is None:
        yield from ((out_of(path, settings), try_score(path, settings, progress=progress)) for path in paths)
        return
    from distributed import Client

    try:
        client = Client(cluster, timeout=_ANSWERS_WITHIN)
    except (OSError, ValueError) as error:
        raise WsiscoreError(
            f"no dask scheduler answers at {cluster} ({error}); start one with `dask scheduler`"
        ) from error
    with client:
        tasks = []
        for path in paths:  # a worker may stand in another folder
            here = replace(
                settings, out=out_of(path, settings).absolute(), roi=settings.roi and settings.roi.absolute()
            )
            tasks.append((out_of(path, settings), client.submit(try_score, path.absolute(), here, pure=False)))
        yield from ((out, task.result()) for out, task in tasks)


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
