"""The models that were compared, on the page of a slide: the index by each, and a map of where they differ."""

from __future__ import annotations

from typing import Any

from wsiscore.analysis.consensus import MATCH_UM, MOST_APART, difference
from wsiscore.report.local_index import MIN_LOCAL, bounds_um, count_squares, map_side_um
from wsiscore.report.pages.pictures import INDEX_COLOURS, Coloured, square_map
from wsiscore.report.result import Result
from wsiscore.report.statistics import readable
from wsiscore.report.thumbnail import read_thumbnail

__all__ = ["consensus_section"]


def consensus_section(result: Result) -> dict[str, Any] | None:
    """Return what the template shows of further models; None if the slide was scored by one alone."""
    score = result.score
    if not score.others:
        return None
    rows = [(f"{score.model}, reported", score.total.ki67_index, score.total.n, "", "")]
    rows += [
        (each.model, each.index, each.n, readable(100 * each.found_by_both, unit="%"), readable(each.kappa, decimals=2))
        for each in score.others
    ]
    indices = score.indices
    return {
        "rows": [(name, readable(index, decimals=1, unit="%"), f"{n:,}", *rest) for name, index, n, *rest in rows],
        "difference": readable(difference(indices.values()), decimals=1, unit="points"),
        "short": ", ".join(
            f"{readable(index, unit='%')} by {model}" for model, index in indices.items() if model != score.model
        ),
        "match_um": MATCH_UM,
        "most_apart": MOST_APART,
        "map": _map(result) if len(result.cells) else None,
    }


def _map(result: Result) -> dict[str, Any]:
    """Return the map of the largest difference of the local index, in squares where each model found enough cells."""
    side_um = map_side_um(result.cells, result.rois)
    counted = [
        {square.bounds_um: square.tally for square in count_squares(cells, result.rois, side_um)}
        for cells in (result.cells, *result.by_model.values())
    ]
    shown = []
    for bounds in counted[0]:
        tallies = [squares[bounds] for squares in counted if bounds in squares and squares[bounds].n >= MIN_LOCAL]
        if len(tallies) == len(counted):
            indices = [tally.ki67_index for tally in tallies]
            words = ", ".join(f"{index:.0f} %" for index in indices)
            shown.append(Coloured(bounds, difference(indices), f"{difference(indices):.0f} points: {words}"))
    picture = read_thumbnail(result.slide, bounds_um(result.rois), max_px=700)
    label = f"Map of the largest difference between models in {len(shown)} squares"
    return {
        "picture": square_map(picture, result.rois, shown, label, "models"),
        "side_um": side_um,
        "min_cells": MIN_LOCAL,
        "colours": INDEX_COLOURS,
    }
