"""Correcting and issuing: reports that somebody signed, and the earlier ones that they replace.

A report that was issued is not replaced by a later run unless that is forced, and what it replaces is kept in
``earlier/<number>/`` of the slide's folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from wsiscore.cells.edits import correct
from wsiscore.cells.marked import read_marked
from wsiscore.cells.table import Cells
from wsiscore.errors import CorrectionError
from wsiscore.files import writing
from wsiscore.pipeline.job import Job
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.provenance import RUN
from wsiscore.regions import Roi
from wsiscore.report.json import read_score
from wsiscore.report.writers import WRITERS
from wsiscore.score import Issue

__all__ = ["EARLIER", "corrected", "earlier_reports", "keep_earlier", "refuse_issued"]

EARLIER = "earlier"
"""Folder of the reports that were replaced, in the slide's folder."""
_SCORE = "score.json"


def refuse_issued(job: Job, options: ScoreOptions) -> None:
    """Raise a CorrectionError if the report in a slide's folder was issued and is not to be replaced.

    A correction replaces it, and keeps it; so does `force`.
    """
    if options.cells and job.mosaic is None:
        raise CorrectionError(
            f"{job.slide.path} is a slide; --cells corrects what was counted on its mosaic, so give that"
        )
    stored = read_score(job.folder / _SCORE)
    if stored is None or stored.issue is None or options.cells or options.force:
        return
    issue = stored.issue
    raise CorrectionError(
        f"{job.folder} holds a report that was issued by {issue.author} on {issue.date[:10]}, which is left as it is; "
        "correct it with --cells and --author, score into another folder with -o, or replace it with --force"
    )


def corrected(
    job: Job, cells: Cells, others: Cells, rois: Sequence[Roi], options: ScoreOptions
) -> tuple[Cells, Cells, Issue | None]:
    """Return the cells, corrected if that was asked for, and who issues them; None if nobody does.

    Raises
    ------
    CorrectionError
        If the corrected cells cannot be used, or are of a report that was made with other options.
    """
    for name in ("cells", "cells_sha256"):  # of an earlier run
        job.record.values["settings"].pop(name, None)
    if not options.author:
        return cells, others, None
    edits = None
    if options.cells:
        _refuse_other_options(job, cells)
        marked = read_marked(options.cells, job.slide.mpp)
        try:
            cells, others, edits = correct(cells, others, marked, rois, most_new=1.0 if options.force else 0.5)
        except CorrectionError as error:
            raise CorrectionError(f"{options.cells}: {error}") from error
        digest = hashlib.sha256(options.cells.read_bytes()).hexdigest()
        job.record.note("settings", {"cells": str(options.cells.absolute()), "cells_sha256": digest})
    return cells, others, Issue(options.author, datetime.now(UTC).isoformat(timespec="seconds"), edits)


def _refuse_other_options(job: Job, found: Cells) -> None:
    """Raise a CorrectionError unless the model finds the same cells as for the report that is corrected."""
    stored = read_score(job.folder / _SCORE)
    if stored is None:
        return
    edits, total = stored.edits, stored.total
    was = (edits.found_positive, edits.found_negative) if edits else (total.n_positive, total.n_negative)
    now = (int(found.positive.sum()), int((~found.positive).sum()))
    if was != now:
        raise CorrectionError(
            f"{job.folder / _SCORE} counts {was[0]:,} positive and {was[1]:,} negative cells of the model, now there "
            f"are {now[0]:,} and {now[1]:,}: it was made with other options; give those (--roi, --threshold and the "
            "like) with --cells too"
        )


def earlier_reports(folder: Path) -> list[str]:
    """Return the numbers of the reports that were replaced, first to last."""
    kept = folder / EARLIER
    names = [path.name for path in kept.iterdir() if path.name.isdecimal()] if kept.is_dir() else []
    return sorted(names, key=int)


def keep_earlier(folder: Path, issue: Issue | None) -> None:
    """Keep the results in a slide's folder as ``earlier/<number>/`` if they or the new ones are issued.

    What is kept already is not kept twice. The files are linked where the disk can do that, so that they take no space,
    and the report stays where it is until the new one replaces it.

    Parameters
    ----------
    folder
        The slide's.
    issue
        Of the report that will replace it.

    Raises
    ------
    OutputError
        If that is not possible.
    """
    stored = read_score(folder / _SCORE)
    if stored is None or (issue is None and stored.issue is None):
        return
    kept = folder / EARLIER
    with writing(kept):
        names = earlier_reports(folder)
        if names and _same(kept / names[-1] / RUN, folder / RUN):  # a run that was killed has done it
            return
        part = kept / ".part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name in (RUN, *(writer.name for writer in WRITERS)):
            if (folder / name).is_file():
                _link(folder / name, part / name)
        part.rename(kept / str(int(names[-1]) + 1 if names else 1))


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.read_bytes() == other.read_bytes()
