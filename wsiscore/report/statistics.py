"""The statistics of a score: one table that the TSV, ``scores.csv``, ``score.json`` and the pages read.

A new statistic is one entry of `STATISTICS`. Its `places` say where it is written; the order of the table is the
order in each of them, so a new column of the TSV goes after the existing ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Flag, auto
from typing import Any

from wsiscore.analysis.consensus import difference
from wsiscore.analysis.flags import join_flags
from wsiscore.files import one_line
from wsiscore.report.result import Entry
from wsiscore.score import SlideScore, Tally, decide

__all__ = [
    "COLUMNS",
    "HEADER",
    "STATISTICS",
    "Place",
    "Statistic",
    "Value",
    "entry_json",
    "entry_row",
    "error_row",
    "index_by_model",
    "readable",
    "row",
    "score_json",
    "statistics_in",
]

Value = int | float | str | tuple[float, float] | dict[str, Any] | list[dict[str, Any]] | None
"""A count, a number (nan if undefined), a text, an interval, or what JSON can hold."""


class Place(Flag):
    """Where a statistic is written."""

    TABLE = auto()
    """A column of the TSV and of ``scores.csv``."""
    JSON = auto()
    """A key of ``score.json``, of the slide."""
    JSON_ROI = auto()
    """A key of each region in ``score.json``."""
    SUMMARY = auto()
    """The counts at the top of a slide's report."""
    REGIONS = auto()
    """A column of the table of regions in a slide's report."""
    COHORT = auto()
    """A column of the page of a cohort."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """One statistic of a slide or of one of its regions.

    Parameters
    ----------
    name
        Its key and the name of its column; unique in each place.
    label
        Its name for people.
    compute
        ``compute(score, tally)`` returns the value for the slide, or for a region of it, whose cells are `tally`.
    places
        Where it is written.
    unit
        For people; empty if there is none.
    decimals
        Digits after the point in tables and on pages; None if it is a text.
    heading
        Its name above a column, where that is shorter than the label; the unit is added.
    """

    name: str
    label: str
    compute: Callable[[SlideScore, Tally], Value]
    places: Place
    unit: str = ""
    decimals: int | None = None
    heading: str = ""

    @property
    def is_text(self) -> bool:
        """Whether the values are texts."""
        return self.decimals is None

    @property
    def column_heading(self) -> str:
        """The heading of a column on a page; a percent sign stands with the values instead."""
        return self.heading or (f"{self.label}, {self.unit}" if self.unit not in ("", "%") else self.label)

    def in_table(self, score: SlideScore) -> str:
        """Return the field of a row of the TSV: ``nan`` if undefined, one line without tabs if a text."""
        value = self.compute(score, score.total)
        if isinstance(value, str):
            return one_line(value)
        if isinstance(value, float) and self.decimals is not None:
            return f"{value:.{self.decimals}f}"
        return "nan" if value is None else str(value)

    def in_json(self, score: SlideScore, tally: Tally) -> Value:
        """Return the value for JSON: unrounded, None if undefined."""
        value = self.compute(score, tally)
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def on_page(self, score: SlideScore, tally: Tally, *, unit: bool = False) -> str:
        """Return the value for people, a dash if undefined; with its unit if that is `unit` or a percent sign."""
        value = self.compute(score, tally)
        if not isinstance(value, int | float | tuple):
            return str(value or "–")
        numbers = value if isinstance(value, tuple) else (value,)
        return readable(*numbers, decimals=self.decimals or 0, unit=self.unit if unit or self.unit == "%" else "")


def readable(*numbers: float, decimals: int = 0, unit: str = "") -> str:
    """Return a number, or the two ends of an interval, with thousands separated; a dash if undefined."""
    if not all(math.isfinite(value) for value in numbers):
        return "–"
    return "–".join(f"{value:,.{decimals}f}" for value in numbers) + (f" {unit}" if unit else "")


def _model_with_stain(score: SlideScore, _: Tally) -> str:
    """Return the model with the origin of a virtual stain, so that no table mixes it with stained slides unseen."""
    return f"{score.model} on virtual {score.virtual.model}" if score.virtual else score.model


def _call(score: SlideScore, tally: Tally) -> str:
    """Return the call of the slide, or of a region of it, which is that of counting alone."""
    return score.call if tally is score.total else decide(tally, score.cutoff, flags=score.flags).call


def index_by_model(score: SlideScore) -> str:
    """Return the index by each model that was compared, as ``a=21.3;b=24.0``; empty if none was."""
    return ";".join(f"{model}={index:.1f}" for model, index in score.indices.items())


def _other_models(score: SlideScore, _: Tally) -> list[dict[str, Any]]:
    """Return what further models counted, JSON-ready."""
    numbers = (
        {"ki67_index": each.index, "found_by_both": each.found_by_both, "kappa": each.kappa} for each in score.others
    )
    return [
        {**asdict(each), **{key: value if math.isfinite(value) else None for key, value in own.items()}}
        for each, own in zip(score.others, numbers, strict=True)
    ]


_FILES = Place.TABLE | Place.JSON | Place.JSON_ROI
_OWN = Place.TABLE | Place.JSON  # of the slide, not of a region

STATISTICS: tuple[Statistic, ...] = (
    Statistic("slide", "Slide", lambda score, _: score.slide, Place.TABLE | Place.JSON),
    Statistic("model", "Model", _model_with_stain, Place.TABLE),
    Statistic("model", "Model", lambda score, _: score.model, Place.JSON),
    Statistic("virtual", "Virtual", lambda score, _: asdict(score.virtual) if score.virtual else None, Place.JSON),
    Statistic(
        "positive",
        "Positive cells",
        lambda _, tally: tally.n_positive,
        _FILES | Place.SUMMARY | Place.REGIONS,
        decimals=0,
        heading="Positive",
    ),
    Statistic(
        "negative",
        "Negative cells",
        lambda _, tally: tally.n_negative,
        _FILES | Place.SUMMARY | Place.REGIONS,
        decimals=0,
        heading="Negative",
    ),
    Statistic(
        "ki67_index",
        "Ki67 index",
        lambda _, tally: tally.ki67_index,
        _FILES | Place.REGIONS | Place.COHORT,
        unit="%",
        decimals=1,
        heading="Index",
    ),
    Statistic("low95", "95 % interval, lower end", lambda _, tally: tally.interval_95[0], _FILES, "%", 1),
    Statistic("high95", "95 % interval, upper end", lambda _, tally: tally.interval_95[1], _FILES, "%", 1),
    Statistic("interval_95", "95 % interval", lambda _, tally: tally.interval_95, Place.REGIONS | Place.COHORT, "%", 1),
    Statistic("sampling_95", "Interval of sampling", lambda score, _: score.sampling_95, Place.COHORT, "%", 1),
    Statistic(
        "cells",
        "Cells counted",
        lambda _, tally: tally.n,
        Place.SUMMARY | Place.REGIONS | Place.COHORT,
        decimals=0,
        heading="Cells",
    ),
    Statistic(
        "area_mm2",
        "Area",
        lambda _, tally: tally.area_mm2,
        _FILES | Place.SUMMARY | Place.REGIONS | Place.COHORT,
        unit="mm²",
        decimals=3,
    ),
    Statistic(
        "excluded_mm2",
        "Area left out",
        lambda score, _: score.excluded_mm2,
        Place.JSON | Place.SUMMARY,
        unit="mm²",
        decimals=3,
    ),
    Statistic("excluded", "Left out", lambda score, _: dict(score.excluded), Place.JSON),
    Statistic(
        "cells_per_mm2",
        "Density",
        lambda _, tally: tally.cells_per_mm2,
        Place.JSON | Place.JSON_ROI | Place.SUMMARY | Place.REGIONS,
        unit="cells/mm²",
        decimals=0,
        heading="Cells/mm²",
    ),
    Statistic("call", "Call", _call, _FILES | Place.COHORT),
    Statistic("reason", "Reason", lambda score, _: score.decision.reason, Place.TABLE | Place.JSON),
    Statistic("flags", "Flags", lambda score, _: join_flags(score.flags), Place.TABLE | Place.JSON | Place.COHORT),
    Statistic(
        "other_nuclei",
        "Other nuclei, left out",
        lambda score, _: score.n_other,
        Place.TABLE | Place.JSON | Place.SUMMARY,
        decimals=0,
    ),
    Statistic(
        "sampling_low95", "95 % interval of sampling, lower end", lambda score, _: score.sampling_95[0], _OWN, "%", 1
    ),
    Statistic(
        "sampling_high95", "95 % interval of sampling, upper end", lambda score, _: score.sampling_95[1], _OWN, "%", 1
    ),
    Statistic(
        "design_effect",
        "Design effect",
        lambda score, _: score.sampling.design_effect if score.sampling else None,
        _OWN,
        decimals=2,
    ),
    Statistic(
        "block_um",
        "Side of a block",
        lambda score, _: score.sampling.block_um if score.sampling else None,
        _OWN,
        unit="µm",
        decimals=0,
    ),
    Statistic("blocks", "Blocks", lambda score, _: score.sampling.blocks if score.sampling else None, _OWN, decimals=0),
    Statistic(
        "p_at_or_above_cutoff",
        "Probability that the index is at or above the cutoff",
        lambda score, _: score.p_at_or_above_cutoff,
        _OWN,
        decimals=4,
    ),
    Statistic(
        "model_half_width",
        "Half-width of the model's error",
        lambda score, _: score.model_error.half_width if score.model_error else None,
        _OWN,
        unit="points",
        decimals=1,
    ),
    Statistic(
        "model_level",
        "Level of the model's half-width",
        lambda score, _: score.model_error.level if score.model_error else None,
        Place.JSON,
        decimals=2,
    ),
    Statistic(
        "model_images",
        "Images behind the model's half-width",
        lambda score, _: score.model_error.images if score.model_error else None,
        Place.JSON,
        decimals=0,
    ),
    Statistic("cutoff", "Cutoff", lambda score, _: score.cutoff, Place.JSON, unit="%", decimals=1),
    Statistic("path", "Slide file", lambda score, _: score.path, Place.TABLE | Place.JSON),
    Statistic("sha256", "SHA-256 of the slide", lambda score, _: score.sha256, Place.TABLE | Place.JSON),
    Statistic("case", "Case", lambda score, _: score.case, Place.TABLE | Place.JSON),
    Statistic("edits", "Edited cells", lambda score, _: score.edits.total if score.edits else 0, _OWN, "", 0),
    Statistic("author", "Author", lambda score, _: score.issue.author if score.issue else "", _OWN),
    Statistic("issued", "Issued", lambda score, _: score.issue.date if score.issue else "", _OWN),
    Statistic("issue", "Issue", lambda score, _: asdict(score.issue) if score.issue else None, Place.JSON),
    Statistic("index_by_model", "Index by model", lambda score, _: index_by_model(score), _OWN),
    Statistic("other_models", "Further models", _other_models, Place.JSON),
    Statistic(
        "model_difference",
        "Largest difference between models",
        lambda score, _: difference(score.indices.values()),
        Place.TABLE | Place.JSON | Place.COHORT,
        unit="points",
        decimals=1,
        heading="Models differ by, points",
    ),
    Statistic(
        "model_kappa",
        "Least kappa between models",
        lambda score, _: min((each.kappa for each in score.others), default=math.nan),
        Place.TABLE | Place.JSON,
        decimals=2,
    ),
)


def statistics_in(place: Place) -> tuple[Statistic, ...]:
    """Return the statistics that are written in a place, in order."""
    return tuple(statistic for statistic in STATISTICS if place in statistic.places)


COLUMNS = statistics_in(Place.TABLE)
"""The columns of the TSV and of ``scores.csv``, in order."""
HEADER = tuple(column.name for column in COLUMNS)
"""Their names."""


def row(score: SlideScore) -> list[str]:
    """Return a score as the fields of `HEADER`: percent to one decimal, mm² to three, ``nan`` if undefined."""
    return [column.in_table(score) for column in COLUMNS]


def error_row(slide: str, model: str, reason: str, path: str = "", case: str = "") -> list[str]:
    """Return the row of a slide that could not be scored: no numbers, and the reason as its call."""
    texts = {"slide": slide, "model": model, "call": f"error: {reason}", "path": path, "case": case}
    return [one_line(texts.get(column.name, "")) if column.is_text else "nan" for column in COLUMNS]


def entry_row(entry: Entry) -> list[str]:
    """Return the row of a slide of a cohort, scored or failed."""
    return row(entry.score) if entry.score else error_row(entry.slide, entry.model, entry.error, entry.path, entry.case)


def entry_json(entry: Entry) -> dict[str, Value]:
    """Return the row of a slide as what JSON can hold: numbers unrounded, None for what is undefined."""
    if entry.score is None:
        texts = dict(zip(HEADER, entry_row(entry), strict=True))
        return {column.name: texts[column.name] if column.is_text else None for column in COLUMNS}
    return {column.name: column.in_json(entry.score, entry.score.total) for column in COLUMNS}


def score_json(score: SlideScore) -> dict[str, Any]:
    """Return a score as what JSON can hold: numbers unrounded, None for what is undefined.

    ``virtual`` holds the fields of `VirtualStain`, or None for a stained slide; ``by_roi`` gives each region's name
    the same numbers and its own call.
    """
    by_roi = {
        name: {each.name: each.in_json(score, tally) for each in statistics_in(Place.JSON_ROI)}
        for name, tally in score.by_roi.items()
    }
    return {each.name: each.in_json(score, score.total) for each in statistics_in(Place.JSON)} | {"by_roi": by_roi}
