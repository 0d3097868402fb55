"""What the report of a slide says of its intervals, protocols, convention and heterogeneity."""

from __future__ import annotations

import math
from typing import Any

from wsiscore.analysis.convention import Convention
from wsiscore.analysis.intervals import MIN_BLOCKS
from wsiscore.analysis.protocols import HOT_SPOT_CELLS, CountedField, Protocols, zone
from wsiscore.report.pages.charts import interval_bar, limit_curve
from wsiscore.report.result import Result
from wsiscore.report.statistics import readable
from wsiscore.score import SlideScore

__all__ = ["analysis_values", "counted_fields", "interval_rows"]


def analysis_values(result: Result) -> dict[str, Any]:
    """Return what the templates show of a slide's analysis."""
    score, analysis = result.score, result.analysis
    return {
        "intervals": interval_rows(score),
        "hot_spot": _hot_spot_words(analysis.protocols),
        "span": _span_words(analysis.convention),
        "protocols": _protocols(analysis.protocols, score.cutoff),
        "limits": _limits(analysis.convention, score.cutoff),
        "block_sizes": [
            (f"{size.block_um:g} µm", f"{size.blocks:,}", readable(size.design_effect, decimals=1))
            for size in analysis.block_sizes
        ],
        "correlation": readable(analysis.correlation, unit="µm"),
        "entropy": readable(analysis.entropy, decimals=2, unit="bits"),
        "effective_cells": readable(score.total.n / score.sampling.design_effect) if score.sampling else None,
    }


def counted_fields(found: Protocols) -> tuple[CountedField, ...]:
    """Return the fields of the protocols, the hot spot last."""
    return (*found.fields, *((found.hot_spot.field,) if found.hot_spot else ()))


def interval_rows(score: SlideScore) -> list[dict[str, Any]]:
    """Return the three intervals, each with its name, its numbers or why there are none, and its bar."""
    total, varies, error = score.total, score.sampling, score.model_error
    of = "fields" if varies and math.isnan(varies.block_um) else "blocks of tissue"
    sampling = f"the regions hold fewer than {MIN_BLOCKS} blocks of 250 µm"
    model = "its errors on 9 images or more are not in its card"
    level = f"{error.level:.0%} of {error.images} images".replace("%", " %") if error else ""
    rows = (
        ("Counting", total.interval_95, "there are no cells", "95 %: this many cells"),
        ("Sampling", score.sampling_95, sampling, f"95 %: {varies.blocks if varies else 0} {of}"),
        ("Model", score.model_interval, model, f"{level}, tested apart"),
    )
    return [
        {
            "name": name,
            "numbers": readable(*interval, decimals=1, unit="%") if math.isfinite(interval[0]) else "not known",
            "note": note if math.isfinite(interval[0]) else missing,
            "bar": interval_bar(
                total,
                score.cutoff,
                interval=interval,
                name=f"interval of {name.lower()}",
                head=place == 0,
                ticks=place == len(rows) - 1,
            ),
        }
        for place, (name, interval, missing, note) in enumerate(rows)
    ]


def _hot_spot_words(found: Protocols) -> str:
    hot = found.hot_spot
    if hot is None:
        return f"not measured: fewer than {HOT_SPOT_CELLS} cells"
    numbers = f"{hot.field.index:.0f} % (chance {hot.chance:.0f} %)"
    return numbers if hot.above_chance else f"none: the hottest field has {numbers}"


def _span_words(curve: Convention | None) -> str:
    if curve is None:
        return "not known: no optical density of DAB"
    low, high = curve.span
    return f"{high:.0f} % if any brown counts, {low:.0f} % if only plainly brown"


def _protocols(found: Protocols, cutoff: float) -> list[tuple[str, str, str, str]]:
    """Return each protocol with its index, the side of the cutoff and the zone."""
    hot = found.hot_spot
    rows = [
        ("Global: all cells", found.global_index),
        ("4 fields of 100 cells, mean", found.unweighted),
        ("4 fields of 100 cells, weighted by tissue", found.weighted),
        (f"Hottest field of {HOT_SPOT_CELLS} cells", hot.field.index if hot else math.nan),
    ]
    return [
        (
            name,
            readable(index, decimals=1, unit="%"),
            "–" if math.isnan(index) else f"{'at or above' if index >= cutoff else 'below'} {cutoff:g} %",
            zone(index),
        )
        for name, index in rows
    ]


def _limits(curve: Convention | None, cutoff: float) -> dict[str, Any] | None:
    if curve is None:
        return None
    return {"chart": limit_curve(curve, cutoff), "used": f"{curve.used:.2f}", "is_rule": curve.used_is_rule}
