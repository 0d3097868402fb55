"""Where the time of a run went, so that its bottleneck is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["fractions", "summary", "time_left", "time_text"]

_PARTS = {
    "decode": ("infer: wait_for_reading",),
    "network": ("infer: sample", "infer: network"),
    "write": ("infer: wait_for_writing", "infer: pyramid"),
    "cells": ("cells", "analysis"),
    "report": ("write", "write: report.html"),
}
"""Part -> the stages of ``run.json`` that are in it."""


def fractions(stages: Mapping[str, float], seconds: float, tiles: int = 0) -> dict[str, float]:
    """Return where the time of one slide went.

    Parameters
    ----------
    stages
        Seconds by the name of the stage, of this run alone. Reading, network and writing overlap: each has the seconds
        in which the others waited for it.
    seconds
        In all.
    tiles
        Tiles that were computed.

    Returns
    -------
    ``decode``, ``network``, ``write``, ``cells``, ``report`` and ``other`` as fractions of ``seconds``, and
    ``tiles_per_s`` while they were computed, 0 if none was.
    """
    found = {part: sum(stages.get(name, 0.0) for name in names) for part, names in _PARTS.items()}
    found["other"] = max(0.0, seconds - sum(found.values()))
    whole = max(seconds, sum(found.values()), 1e-9)
    rate = tiles / stages["infer"] if tiles and stages.get("infer") else 0.0
    return {
        **{part: round(value / whole, 3) for part, value in found.items()},
        "tiles_per_s": round(rate, 1),
        "seconds": round(seconds, 3),
    }


def summary(runs: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """Return the line at the end of a run.

    Parameters
    ----------
    runs
        Of each slide, what `fractions` returned.
    seconds
        By the clock, in all.
    """
    n = len(runs)
    whole = max(sum(float(run["seconds"]) for run in runs), 1e-9)
    parts = {
        part: sum(float(run.get(part, 0)) * float(run["seconds"]) for run in runs) / whole
        for part in (*_PARTS, "other")
    }
    largest = sorted(parts.items(), key=lambda each: -each[1])
    named = ", ".join(f"{part} {100 * value:.0f} %" for part, value in largest if value >= 0.005)
    rates = sorted(float(run.get("tiles_per_s", 0)) for run in runs)
    rate = f", {rates[n // 2]:.3g} tiles/s" if rates[n // 2] else ""
    return f"{n} slide{'s' if n > 1 else ''} in {time_text(seconds)}{rate}; the time went to {named}"


def time_left(done: int, of: int, seconds: float) -> str:
    """Return the line after a slide that is not the last: how many are done, and about how long the others take."""
    return f"{done} of {of} slides done in {time_text(seconds)}; about {time_text(seconds / done * (of - done))} left"


def time_text(seconds: float) -> str:
    """Return seconds as text, in the unit that suits them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
