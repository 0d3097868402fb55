"""The pictures of a report, as SVG over JPEG: lines stay sharp in print and every mark can be pointed at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.cells.table import Cells
from wsiscore.regions import Roi
from wsiscore.report.fields import MIN_LOCAL, Field
from wsiscore.report.page import escape, number
from wsiscore.report.picture import Picture

__all__ = ["field_pair", "histogram", "index_legend", "index_map", "slide_picture"]

_STEPS = (0, 5, 10, 20, 30, 50, 100)  # percent: edges of the colours of the map
_COLOURS = ("#fde725", "#8fd744", "#35b779", "#21908d", "#31688e", "#440154")  # viridis: dark is high, also in grey
_MARK_UM = 4.0
_BARS_UM = (10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def slide_picture(picture: Picture, rois: Sequence[Roi]) -> str:
    """Return the picture with the outlines and, for a few ROIs, their names."""
    return _svg(
        picture,
        _image(picture),
        _outlines(picture, rois),
        _names(picture, rois) if len(rois) <= 12 else "",
        _scale_bar(picture),
        said=f"The slide with the outlines of {len(rois)} regions",
    )


def index_map(picture: Picture, rois: Sequence[Roi], fields: Sequence[Field]) -> str:
    """Return the pale picture under squares coloured by their index; those with too few cells stay clear."""
    shown = [field for field in fields if field.tally.n >= MIN_LOCAL]
    whole = shapely.union_all([roi.outline_um for roi in rois])
    inside = "".join(_path(picture, roi) for roi in rois)
    return _svg(
        picture,
        f'<clipPath id="inside"><path clip-rule="evenodd" d="{inside}"/></clipPath>',
        _image(picture, kind="pale"),
        f'<g class="squares" clip-path="url(#inside)">{"".join(_square(picture, field) for field in shown)}</g>',
        _outlines(picture, rois),
        "".join(_square_number(picture, field, whole) for field in shown),
        _scale_bar(picture),
        said=f"Map of the local index in {len(shown)} squares",
    )


def index_legend() -> str:
    """Return the key to the colours of the map."""
    steps = zip(_COLOURS, _STEPS, _STEPS[1:], strict=False)
    keys = "".join(f'<span><i style="background:{colour}"></i>{low}–{high} %</span>' for colour, low, high in steps)
    return f'<p class="key">{keys}<span><i></i>fewer than {MIN_LOCAL} cells</span></p>'


def field_pair(picture: Picture, rois: Sequence[Roi], cells: Cells, name: str) -> str:
    """Return a field twice: plain, and with a ring on each of `cells`; `name` is unique on the page."""
    xs, ys = picture.x_px(cells.x_um).tolist(), picture.y_px(cells.y_um).tolist()
    radius = f"{_MARK_UM / picture.region.mpp:.1f}"
    marks = "".join(
        f'<circle class="{"pos" if positive else "neg"}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
        for x, y, positive in zip(xs, ys, cells.positive.tolist(), strict=True)
    )
    plain = _svg(picture, _image(picture, name=name), _scale_bar(picture), said="Plain field")
    again = f'<use href="#{name}"/>'
    said = f"The same field with {len(cells)} marked cells"
    return plain + _svg(picture, again, _outlines(picture, rois), marks, said=said)


def histogram(
    values: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_], span: tuple[float, float], mark: float | None
) -> str:
    """Return stacked bars of a measurement: negative cells below, positive ones on top.

    Parameters
    ----------
    values
        One finite number a cell; what lies beyond `span` counts in the last bars.
    positive
        Whether each cell is positive.
    span
        Lowest and highest value of the axis.
    mark
        Where to draw a line, if anywhere.
    """
    bins, width, height = 40, 400, 130
    at = np.clip(((values - span[0]) / (span[1] - span[0]) * bins).astype(np.int64), 0, bins - 1)
    negative, both = np.bincount(at[~positive], minlength=bins), np.bincount(at, minlength=bins)
    unit, step = height / max(int(both.max()), 1), width / bins
    drawn = []
    for bar in range(bins):
        low, all_ = negative[bar] * unit, both[bar] * unit
        x = f'x="{bar * step + 0.5:g}" width="{step - 1:g}"'
        drawn.append(f'<rect class="neg" {x} y="{height - low:.1f}" height="{low:.1f}"/>')
        drawn.append(f'<rect class="pos" {x} y="{height - all_:.1f}" height="{all_ - low:.1f}"/>')
    if mark is not None:
        x_mark = (mark - span[0]) / (span[1] - span[0]) * width
        drawn.append(f'<line class="cutoff" x1="{x_mark:g}" x2="{x_mark:g}" y1="0" y2="{height}"/>')
    drawn.append(f'<line class="base" x1="0" x2="{width}" y1="{height}" y2="{height}"/>')
    ticks = np.linspace(*span, 5).tolist()
    drawn += [
        f'<text x="{(tick - span[0]) / (span[1] - span[0]) * width:g}" y="{height + 16}">{tick:g}</text>'
        for tick in ticks
    ]
    drawn.append(f'<text class="start" x="0" y="-5">{number(int(both.max()))} cells</text>')
    said = f"Histogram of {len(values)} cells from {span[0]:g} to {span[1]:g}"
    box = f"-14 -18 {width + 28} {height + 38}"
    return f'<svg class="histogram" role="img" aria-label="{said}" viewBox="{box}">{"".join(drawn)}</svg>'


def _svg(picture: Picture, *layers: str, said: str) -> str:
    height, width = picture.pixels.shape[:2]
    return (
        f'<svg class="picture" role="img" aria-label="{escape(said)}" viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio="xMinYMin" '
        f'width="{width}" height="{height}">{"".join(layers)}</svg>'
    )


def _image(picture: Picture, *, kind: str = "", name: str = "") -> str:
    height, width = picture.pixels.shape[:2]
    named = (f' class="{kind}"' if kind else "") + (f' id="{name}"' if name else "")
    return f'<image{named} width="{width}" height="{height}" href="{picture.data_uri}"/>'


def _outlines(picture: Picture, rois: Sequence[Roi]) -> str:
    paths = []
    for roi in rois:
        path = _path(picture, roi)
        title = f"<title>{escape(roi.name)}</title>"
        paths.append(f'<path class="casing" d="{path}"/><path class="outline" d="{path}">{title}</path>')
    return "".join(paths)


def _path(picture: Picture, roi: Roi) -> str:
    simple = shapely.simplify(roi.outline_um, 0.5 * picture.region.mpp)
    path = ""
    for ring in shapely.get_rings(shapely.get_parts(simple)):
        x_um, y_um = shapely.get_coordinates(ring).T
        corners = zip(picture.x_px(x_um).tolist(), picture.y_px(y_um).tolist(), strict=True)
        path += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
    return path


def _names(picture: Picture, rois: Sequence[Roi]) -> str:
    height, width = picture.pixels.shape[:2]
    size = max(width, height) / 42
    words = []
    for roi in rois:
        left, top, _, _ = roi.outline_um.bounds
        x = min(max(float(picture.x_px(left)), 0) + size * 0.4, width * 0.9)
        y = min(max(float(picture.y_px(top)), 0) + size * 1.2, height - size * 0.4)
        shown = roi.name if len(roi.name) <= 24 else roi.name[:23] + "…"
        words.append(f'<text class="name" x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}">{escape(shown)}</text>')
    return "".join(words)


def _square(picture: Picture, field: Field) -> str:
    left, top, right, _ = field.bounds_um
    side = (right - left) / picture.region.mpp
    x, y = float(picture.x_px(left)), float(picture.y_px(top))
    said = f"{field.tally.ki67_index:.0f} %: {field.tally.n_positive} of {field.tally.n}"
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}" fill="{_COLOURS[_step(field)]}">'
        f"<title>{said}</title></rect>"
    )


def _square_number(picture: Picture, field: Field, whole_um: shapely.Geometry) -> str:
    """Return the square's index written in what of it lies in the ROIs, where there is room."""
    left, _, right, _ = field.bounds_um
    side = (right - left) / picture.region.mpp
    if side < max(picture.pixels.shape) / 16:
        return ""
    seen = shapely.intersection(shapely.box(*field.bounds_um), whole_um)
    middle = seen.centroid if seen.contains(seen.centroid) else seen.representative_point()
    size = min(side * 0.3, max(picture.pixels.shape) / 28)
    x, y = float(picture.x_px(middle.x)), float(picture.y_px(middle.y)) + size * 0.35
    kind = "on-light" if _step(field) < 3 else "on-dark"
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}">{field.tally.ki67_index:.0f}</text>'


def _step(field: Field) -> int:
    return min(int(np.searchsorted(_STEPS, field.tally.ki67_index, side="right")) - 1, len(_COLOURS) - 1)


def _scale_bar(picture: Picture) -> str:
    height, width = picture.pixels.shape[:2]
    length = max((um for um in _BARS_UM if um / picture.region.mpp <= width / 4), default=_BARS_UM[0])
    bar, size = length / picture.region.mpp, max(width, height) / (36 if max(width, height) > 600 else 18)
    words = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    x, y = width - size - bar, height - size
    thick = math.ceil(size / 5)
    return (
        f'<g class="scale"><rect x="{x:.1f}" y="{y:.1f}" width="{bar:.1f}" height="{thick}"/>'
        f'<text x="{x + bar / 2:.1f}" y="{y - size * 0.4:.1f}" font-size="{size:.1f}">{words}</text></g>'
    )
