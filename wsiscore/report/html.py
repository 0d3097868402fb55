"""The report of one slide: a single HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wsiscore.cells.table import Cells
from wsiscore.files import replacing
from wsiscore.regions import Roi
from wsiscore.report import figures
from wsiscore.report.fields import MIN_LOCAL, bounds_um, choose_fields, local_fields, map_side_um, quartiles
from wsiscore.report.page import (
    RESEARCH_USE,
    escape,
    includes_cutoff,
    interval_bar,
    interval_words,
    number,
    page,
    percent,
    table,
    virtual_banner,
    whole_percent,
)
from wsiscore.report.picture import take
from wsiscore.score import MIN_CELLS, SlideScore, Tally
from wsiscore.slide.readers.base import VirtualStain
from wsiscore.slide.slide import Slide

__all__ = ["write_report"]

_FIELDS = 10
_FIELD_UM = 100.0
_FIELD_MPP = 0.25  # finest resolution of a field in the gallery
_BESIDE = ("overlay.jpg", "cells.geojson", "cells.parquet", "cells.csv", "score.json", "run.json", "tiles.json")


def write_report(
    path: Path, *, slide: Slide, rois: Sequence[Roi], cells: Cells, score: SlideScore, run: Mapping[str, Any]
) -> None:
    """Write the report of one slide.

    Parameters
    ----------
    path
        The file to write.
    slide
        What was scored; its pictures are read again.
    rois
        Where cells were counted.
    cells
        All counted cells.
    score
        Their counts.
    run
        What ``run.json`` says: ``slide``, ``model``, ``settings``, ``versions``, ``stages`` (seconds by name),
        ``warnings``, ``started``, ``wsiscore``, ``peak_memory_mb``. What is missing is reported as not given.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    parts = [
        _header(score, run),
        _summary(score, run),
        _regions(score),
        _pictures(slide, rois, cells),
        _gallery(slide, rois, cells),
        _measurements(cells),
        _method(score, run),
        _provenance(path, run),
        f"<footer><p>{RESEARCH_USE}</p></footer>",
    ]
    document = page(f"Ki67 index of {score.slide}", "\n".join(parts))
    with replacing(path) as part:
        part.write_text(document, encoding="utf-8")


def _header(score: SlideScore, run: Mapping[str, Any]) -> str:
    banner = virtual_banner(_painted_words(score.virtual)) if score.virtual else ""
    of_virtual = " of a virtual stain" if score.virtual else ""
    made = " · ".join(
        escape(word) for word in (f"wsiscore {run.get('wsiscore', '')}".strip(), run.get("started", "")) if word
    )
    return (
        f'<header><p class="kind">Ki67 index report{of_virtual}<span>Research use only</span></p>'
        f"<h1>{escape(score.slide)}</h1><p>{made}</p></header>{banner}"
    )


def _painted_words(virtual: VirtualStain) -> str:
    sha = f", weights {virtual.weights_sha256[:12]}…" if virtual.weights_sha256 else ""
    version = f" version {virtual.version}" if virtual.version else ""
    return (
        f"Painted by the model {virtual.model}{version}{sha}, from the slide {virtual.slide}. What is "
        "counted here no antibody has marked."
    )


def _summary(score: SlideScore, run: Mapping[str, Any]) -> str:
    total = score.total
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in _remarks(score, run))
    counts = {
        "Positive cells": number(total.n_positive),
        "Negative cells": number(total.n_negative),
        "Cells counted": number(total.n),
        "Area": f"{number(total.area_mm2, 3)} mm²",
        "Density": f"{number(total.cells_per_mm2)} cells/mm²",
    }
    kind = "indeterminate" if includes_cutoff(score) else score.call.replace(" ", "-")
    return f"""<section class="summary" aria-label="Result">
<div class="result">
<p class="big">{whole_percent(total.ki67_index, score.cutoff)}</p>
<p>Ki67 index<br><span>95 % interval {interval_words(total)}</span></p>
</div>
<div class="call"><p class="{kind}">{_call_words(score)}</p>
{interval_bar(total, score.cutoff, labels=True)}
<p class="note">Percent of the counted cells. Grey: below 5 % and above 30 %, the ranges in which the ASCO guideline of
2022 (recommendation 1.19) finds Ki67 most informative in breast cancer.</p></div>
<div class="counts">{table(counts)}</div>
</section>
<section><h2>Remarks</h2><ul class="remarks">{remarks or "<li>None.</li>"}</ul>
<p class="note read">The interval is that of counting alone (Wilson). Differences between fields, stains, scanners and
laboratories, and mistakes of the detection, come on top of it. {escape(_known_errors(run))}
The call says on which side of the chosen cutoff the index lies, and no more: laboratories differ, and a cutoff found
in one cannot be transferred to another without validation.</p></section>"""


def _known_errors(run: Mapping[str, Any]) -> str:
    known = run.get("model", {}).get("index_errors")
    if not known:
        return "How far off this model's index is when it is counted so is not known: its card has no such number."
    errors = ", ".join(f"{value:g} points ({name})" for name, value in known.items())
    return f"Where experts marked the cells, the index of this model was off by {errors} on average."


def _call_words(score: SlideScore) -> str:
    call, cutoff = score.call, f"{score.cutoff:g} %"
    if call == "no cells":
        return "<strong>No cells</strong> were found in the regions: there is no index."
    if call == "insufficient":
        return (
            f"<strong>Insufficient:</strong> {number(score.total.n)} cells were counted, and a call needs {MIN_CELLS}."
        )
    side = f"at or above the cutoff of {cutoff}" if call == "high" else f"below the cutoff of {cutoff}"
    if includes_cutoff(score):
        return f"<strong>{call.capitalize()}, but indeterminate:</strong> {side}; the 95 % interval includes it."
    return f"<strong>{call.capitalize()}:</strong> {side}."


def _remarks(score: SlideScore, run: Mapping[str, Any]) -> Iterator[str]:
    yield from (str(warning) for warning in run.get("warnings", ()))
    if includes_cutoff(score):
        yield (
            f"Indeterminate: the 95 % interval, {interval_words(score.total)}, includes the cutoff of "
            f"{score.cutoff:g} %. Counting more cells of the same tumour may settle it."
        )
    if score.call == "insufficient":
        yield (
            f"Few cells: {score.total.n} of the {MIN_CELLS} that the International Ki67 in Breast Cancer Working "
            "Group asks for. The index is given, without a call."
        )
    if score.call == "no cells":
        yield "No cells were found, so nothing can be said about proliferation; this is not an index of 0 %."


def _regions(score: SlideScore) -> str:
    rows = [(escape(name), tally, "") for name, tally in score.by_roi.items()]
    rows.append(("All regions", score.total, ' class="total"'))
    body = "".join(
        f'<tr{kind}><th scope="row">{name}</th>{_cells_of_row(tally)}<td>{interval_bar(tally, score.cutoff)}</td></tr>'
        for name, tally, kind in rows
    )
    return f"""<section><h2>Regions</h2><div class="wide"><table>
<thead><tr><th scope="col">Region</th><th scope="col">Positive</th><th scope="col">Negative</th>
<th scope="col">Total</th><th scope="col">Index</th><th scope="col">95 % interval</th><th scope="col">Area, mm²</th>
<th scope="col">Cells/mm²</th><th scope="col" class="axis">0 to 100 %</th></tr></thead>
<tbody>{body}</tbody></table></div></section>"""


def _cells_of_row(tally: Tally) -> str:
    shown = (
        number(tally.n_positive),
        number(tally.n_negative),
        number(tally.n),
        percent(tally.ki67_index),
        interval_words(tally),
        number(tally.area_mm2, 3),
        number(tally.cells_per_mm2),
    )
    return "".join(f"<td>{value}</td>" for value in shown)


def _pictures(slide: Slide, rois: Sequence[Roi], cells: Cells) -> str:
    whole = (0.0, 0.0, slide.width_px * slide.mpp, slide.height_px * slide.mpp)
    kind = "virtual stain" if slide.virtual else "slide"
    slide_figure = (
        f"<figure>{figures.slide_picture(take(slide, whole, max_px=1000), rois)}"
        f"<figcaption>The {kind}. Yellow: the outlines within which cells were counted.</figcaption></figure>"
    )
    if not len(cells):
        return f'<section><h2>Slide</h2><div class="two">{slide_figure}</div></section>'
    left, top, right, bottom = bounds_um(rois)
    rim = 0.02 * max(right - left, bottom - top)
    view = (max(left - rim, 0), max(top - rim, 0), min(right + rim, whole[2]), min(bottom + rim, whole[3]))
    side_um = map_side_um(cells, rois)
    fields = local_fields(cells, rois, side_um)
    spread = quartiles(fields)
    words = f"Local index in squares of {side_um:g} µm, within the regions."
    if spread is not None:
        low, median, high = (f"{value:.0f}" for value in spread)
        words += f" Half of the squares lie between {low} and {high} %, their median is {median} %."
    drawn = figures.index_map(take(slide, view, max_px=1000), rois, fields)
    return (
        f'<section><h2>Slide and local index</h2><div class="two">{slide_figure}<figure>{drawn}'
        f"<figcaption>{words}{figures.index_legend()}</figcaption></figure></div></section>"
    )


def _gallery(slide: Slide, rois: Sequence[Roi], cells: Cells) -> str:
    if not len(cells):
        return ""
    width_um, height_um = slide.width_px * slide.mpp, slide.height_px * slide.mpp
    chosen = choose_fields(local_fields(cells, rois, _FIELD_UM), _FIELDS)
    pairs = []
    for rank, field in enumerate(chosen, 1):
        left, top, right, bottom = field.bounds_um
        right, bottom = min(right, width_um), min(bottom, height_um)
        picture = take(slide, (left, top, right, bottom), max_px=1000, mpp=_FIELD_MPP)
        inside = field.holds(cells)
        drawn = figures.field_pair(picture, rois, cells.select(inside), f"field-{rank}")
        pairs.append(
            f'<figure class="field"><div>{drawn}</div><figcaption><strong>{field.tally.ki67_index:.0f} %</strong> '
            f"{field.tally.n_positive} of {field.tally.n} cells positive · x {left / 1000:.2f} mm, "
            f"y {top / 1000:.2f} mm</figcaption></figure>"
        )
    fewest = f"at least {MIN_LOCAL} cells" if chosen[0].tally.n >= MIN_LOCAL else "cells"
    rule = (
        f"cut into {_FIELDS} equal groups; of each group the one with the most cells is shown"
        if len(chosen) == _FIELDS
        else "all of which are shown"
    )
    return (
        "<section><h2>Fields, from the lowest to the highest local index</h2>"
        f"<p>Squares of {_FIELD_UM:g} µm with {fewest}, ordered by their index, {rule}, plain and marked: "
        '<span class="pos">○ positive</span>, <span class="neg">○ negative</span>.</p>'
        f'<div class="two">{"".join(pairs)}</div></section>'
    )


def _measurements(cells: Cells) -> str:
    if not len(cells):
        return ""
    positivity = figures.histogram(cells.positivity, cells.positive, (0.0, 1.0), 0.5)
    known = np.isfinite(cells.dab_od)
    shown = [("Positivity of each cell; at and above the line, 0.5, it counts as positive.", positivity)]
    if known.any():
        od = figures.histogram(cells.dab_od[known], cells.positive[known], (0.0, 1.6), None)
        shown.append(("Mean optical density of DAB of each cell; the last bar holds all above 1.6.", od))
    drawn = "".join(f"<figure>{svg}<figcaption>{words}</figcaption></figure>" for words, svg in shown)
    return (
        '<section><h2>How clearly the cells separate</h2><p>Number of cells: <span class="pos">■ positive</span>, '
        '<span class="neg">■ negative</span>. Many cells near the line mean that the index hangs on where it is drawn.'
        f'</p><div class="two">{drawn}</div></section>'
    )


def _method(score: SlideScore, run: Mapping[str, Any]) -> str:
    model, settings = run.get("model", {}), run.get("settings", {})
    version = f", version {model['version']}" if model.get("version") else ""
    family = f" (family {model['family']}{version})" if model.get("family") else ""
    rules = ""
    smoothed = f", smoothed by {settings['smooth_um']:g} µm," if settings.get("smooth_um") else ""
    if "threshold" in settings and "radius_um" in settings:
        rules = (
            f" A cell is where the model's map of cell centres{smoothed} is highest within {settings['radius_um']:g} "
            f"µm and above {settings['threshold']:g}."
        )
    elif "least_area_um2" in settings:
        rules = (
            f" A cell is a connected area of more than {settings['least_area_um2']:g} µm² where the model's maps of "
            f"positive and negative together exceed {settings['threshold']:.3g} and that of boundaries is at most "
            f"{settings['boundary']:.3g}, with its holes; its positivity is the positive share of it."
        )
    words = (
        f"Every cell that the model {score.model}{family} marked inside the regions was counted once, all with the "
        "same weight (a global index, not that of a hot spot): the index is the share of positive cells among them."
        f"{rules} A cell is positive if its positivity is at least 0.5. Cells that are not of the tumour count as well "
        "where the model marks them and the regions hold them. The interval is Wilson's at 95 %. The call needs "
        f"{MIN_CELLS} cells and compares the index with the cutoff of {score.cutoff:g} %."
    )
    if score.virtual:
        words += (
            " The stain is virtual: the cells were marked on a picture that another model painted, and the interval "
            "says nothing of how well it did."
        )
    given = {
        "Specimen": run.get("specimen", "not given"),
        "Antibody clone and platform": run.get("antibody", "not given"),
        "Origin of the regions": settings.get("roi_source", "not given"),
        "Weights, SHA-256": model.get("weights_sha256") or "none: the model has no weights",
    }
    return f"<section><h2>Method</h2><p>{escape(words)}</p>{table(given)}</section>"


def _provenance(path: Path, run: Mapping[str, Any]) -> str:
    stages = {name: f"{seconds:.1f} s" for name, seconds in run.get("stages", {}).items()}
    if "peak_memory_mb" in run:
        stages["peak memory"] = f"{run['peak_memory_mb']} MB"
    groups = [
        ("Slide file", _flat(run.get("slide", {}))),
        ("Settings", _flat(run.get("settings", {}))),
        ("Versions", _flat(run.get("versions", {}))),
        ("Time by stage, and memory", stages),
    ]
    shown = "".join(f"<div><h3>{title}</h3>{table(pairs)}</div>" for title, pairs in groups if pairs)
    here = [name for name in _BESIDE if (path.parent / name).exists()]
    links = ", ".join(f'<a href="{name}">{name}</a>' for name in here)
    beside = f"<p>Files beside this one: {links}.</p>" if links else ""
    return f'<section class="provenance"><h2>How this was made</h2><div class="two">{shown}</div>{beside}</section>'


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level of ``name.name``."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = "not given" if value is None else str(value)
    return flat
