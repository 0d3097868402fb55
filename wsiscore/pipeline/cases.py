"""Cases: the slides or fields of one case pooled to one index, with the uncertainty between blocks of all of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np

from wsiscore.analysis.blocks import SIDES_UM, between_fields, sampling
from wsiscore.analysis.consensus import OtherModel, disagree
from wsiscore.analysis.flags import UNSUITABLE
from wsiscore.analysis.intervals import Sampling
from wsiscore.cells.table import Cells
from wsiscore.files import folder_name
from wsiscore.pipeline.provenance import facts_of
from wsiscore.report.result import CaseResult, Entry
from wsiscore.report.tables import read_cells_table
from wsiscore.score import SlideScore, Tally, with_flags

__all__ = ["pool_cases", "pool_cells"]

_OF_ONE_SLIDE = {
    "indeterminate",
    "limit_decides",
    "hot_spot_differs",
    "models_disagree",
    "blocks_few",
}  # flags that do not add up


def pool_cases(out: Path, entries: Iterable[Entry]) -> list[CaseResult]:
    """Return the cases that slides belong to, by name.

    A failed slide, and one that is unsuitable, is listed in its case and not counted. The slides of a case must have
    the same model and cutoff, and either all or none of them be virtual stains; else the case has an error and no
    index.

    Parameters
    ----------
    out
        Folder of the results, in which the slides' cells are.
    entries
        Slides, of which those without a case are passed over.
    """
    groups: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if case := entry.score.case if entry.score else entry.case:
            groups[case].append(entry)
    return [_case(out, case, sorted(groups[case], key=lambda entry: entry.slide)) for case in sorted(groups)]


def _case(out: Path, case: str, entries: Sequence[Entry]) -> CaseResult:
    facts: dict[str, set[str]] = defaultdict(set)
    for entry in entries:
        for key, value in facts_of(out / entry.folder).items() if entry.folder else ():
            facts[key].add(value)
    about = {key: "; ".join(sorted(values)) for key, values in facts.items() if key != "case"}
    counted = [entry for entry in entries if entry.score is not None and not UNSUITABLE & set(entry.score.flags)]
    scores = [entry.score for entry in counted if entry.score is not None]
    result = CaseResult(case, tuple(entries), None, folder=folder_name(case), facts=about)
    if not scores:
        return replace(result, error="no slide of it was scored")
    for what, found in (
        ("models", {score.model for score in scores}),
        ("virtual stains", {score.virtual.model if score.virtual else "none" for score in scores}),
        ("cutoffs", {f"{score.cutoff:g} %" for score in scores}),
    ):
        if len(found) > 1:
            names = ", ".join(sorted(found))
            return replace(result, error=f"its slides have different {what} ({names}); score them alike")
    score = replace(
        scores[0],
        slide=case,
        total=sum((score.total for score in scores), Tally()),
        by_roi={entry.slide: score.total for entry, score in zip(counted, scores, strict=True)},
        flags=tuple({flag for score in scores for flag in score.flags} - _OF_ONE_SLIDE),
        sampling=_sampling(out, counted, scores),
        excluded={},
        path="",
        sha256="",
        case=case,
        others=_others(scores),
    )
    flags = ["models_disagree"] if disagree(score.indices.values(), score.cutoff) else []
    return replace(result, score=with_flags(score, flags), counted=tuple(entry.slide for entry in counted))


def _others(scores: Sequence[SlideScore]) -> tuple[OtherModel, ...]:
    """Return what further models counted on all slides; nothing if not all slides were compared with the same."""
    if len({tuple(other.model for other in score.others) for score in scores}) > 1:
        return ()
    together = zip(*(score.others for score in scores), strict=True)
    return tuple(reduce(lambda a, b: a + b, counts) for counts in together)


def _sampling(out: Path, entries: Sequence[Entry], scores: Sequence[SlideScore]) -> Sampling | None:
    """Return the design effect between the blocks of all slides; between slides where each is a single block."""
    read = [read_cells_table(out / entry.folder) for entry in entries]
    tables = [counted_and_not and counted_and_not[0] for counted_and_not in read]
    if any(cells is None or len(cells) != score.total.n for cells, score in zip(tables, scores, strict=True)):
        return between_fields([score.total.n for score in scores], [score.total.n_positive for score in scores])
    some = [cells for cells in tables if cells is not None and len(cells)]
    found = sampling(pool_cells(some)) if some else None
    if found is None or found.blocks > len(some):
        return found
    return between_fields([len(cells) for cells in some], [int(cells.positive.sum()) for cells in some])


def pool_cells(slides: Sequence[Cells]) -> Cells:
    """Return the cells of several slides, moved so that no block of `SIDES_UM` holds cells of two of them."""
    side, left = max(SIDES_UM), 0.0
    xs, ys = [], []
    for cells in slides:
        x, y = cells.x_um - cells.x_um.min(), cells.y_um - cells.y_um.min()
        xs.append(x + left)
        ys.append(y)
        left += (math.floor(float(x.max()) / side) + 1) * side
    x_um = np.concatenate(xs)
    return Cells(
        x_um,
        np.concatenate(ys),
        np.concatenate([cells.confidence for cells in slides]),
        np.concatenate([cells.positivity for cells in slides]),
        np.concatenate([cells.dab_od for cells in slides]),
        np.zeros(len(x_um), np.int64),
    )
