"""Pictures of a slide as SVG over JPEG: lines stay sharp in print and every mark can be pointed at."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely
from markupsafe import Markup
from PIL import Image

from wsiscore.analysis.protocols import FIELD_CELLS, CountedField
from wsiscore.cells.table import Cells
from wsiscore.regions import Roi
from wsiscore.report.local_index import MIN_LOCAL, Square
from wsiscore.report.pages.svg import element
from wsiscore.report.thumbnail import Thumbnail

__all__ = ["INDEX_COLOURS", "Coloured", "field_pair", "index_map", "slide_picture", "square_map", "tile_map"]

_STEPS = (0, 5, 10, 20, 30, 50, 100)  # percent
_COLOURS = ("#fde725", "#8fd744", "#35b779", "#21908d", "#31688e", "#440154")  # viridis: dark is high, also in grey
INDEX_COLOURS = tuple(zip(_COLOURS, _STEPS, _STEPS[1:], strict=False))
"""The colours of the map, each with the least and the greatest index it stands for, in percent."""
_RING_UM, _DOT_UM = 4.0, 1.4  # radius of the mark of a positive cell, and of a negative one
_MOST_NAMES = 12
_BARS_UM = (10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


@dataclass(frozen=True, slots=True)
class Coloured:
    """A square of a map.

    Parameters
    ----------
    bounds_um
        Left, top, right, bottom in micrometres from the slide's top left.
    value
        What decides its colour, and is written in it: percent or points, 0 to 100.
    title
        What it says when it is pointed at.
    """

    bounds_um: tuple[float, float, float, float]
    value: float
    title: str


def slide_picture(picture: Thumbnail, rois: Sequence[Roi]) -> Markup:
    """Return the picture with the outlines and, for a few ROIs, their names."""
    names = _names(picture, rois) if len(rois) <= _MOST_NAMES else []
    label = f"The slide with the outlines of {len(rois)} regions"
    return _svg(picture, label, _image(picture), *_outlines(picture, rois), *names, _scale_bar(picture))


def index_map(
    picture: Thumbnail, rois: Sequence[Roi], squares: Sequence[Square], fields: Sequence[CountedField] = ()
) -> Markup:
    """Return the pale picture under squares coloured by their index, with circles around the fields of the protocols.

    Squares with too few cells stay clear.
    """
    shown = [
        Coloured(each.bounds_um, tally.ki67_index, f"{tally.ki67_index:.0f} %: {tally.n_positive} of {tally.n}")
        for each in squares
        if (tally := each.tally).n >= MIN_LOCAL
    ]
    circles = [circle for each in fields for circle in _circles(picture, each)]
    return square_map(picture, rois, shown, f"Map of the local index in {len(shown)} squares", "index", circles)


def square_map(
    picture: Thumbnail,
    rois: Sequence[Roi],
    squares: Sequence[Coloured],
    label: str,
    name: str,
    marks: Sequence[Markup] = (),
) -> Markup:
    """Return the pale picture under coloured squares; `label` says what they show, `name` is unique on the page."""
    whole = shapely.union_all([roi.outline_um for roi in rois])
    inside = "".join(_path(picture, roi) for roi in rois)
    return _svg(
        picture,
        label,
        element("clipPath", element("path", clip_rule="evenodd", d=inside), id=f"inside-{name}"),
        _image(picture, class_="pale"),
        element("g", *(_square(picture, each) for each in squares), class_="squares", clip_path=f"url(#inside-{name})"),
        *_outlines(picture, rois),
        *(_square_number(picture, each, whole) for each in squares),
        *marks,
        _scale_bar(picture),
    )


def tile_map(
    picture: Thumbnail, rois: Sequence[Roi], colours: npt.NDArray[np.uint8], side_um: float, label: str, *, first: bool
) -> Markup:
    """Return the pale picture under a colour for each tile.

    Parameters
    ----------
    picture
        The picture.
    rois
        Whose outlines are drawn.
    colours
        (rows, cols, 4) RGBA of each tile.
    side_um
        Side of a tile in micrometres; the first one lies at the slide's top left.
    label
        What it shows.
    first
        Whether it is the first such map on the page, which embeds the picture for all of them.
    """
    rows, cols = colours.shape[:2]
    left, top = float(picture.x_px(0.0)), float(picture.y_px(0.0))
    side = side_um / picture.region.mpp
    stream = io.BytesIO()
    Image.fromarray(colours).save(stream, "PNG")
    uri = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    size = {"width": cols * side, "height": rows * side}
    under = _image(picture, class_="pale", id="under-tiles") if first else element("use", href="#under-tiles")
    tiles = element("image", class_="tiles", x=left, y=top, preserveAspectRatio="none", href=uri, **size)
    return _svg(picture, label, under, tiles, *_outlines(picture, rois), _scale_bar(picture))


def field_pair(picture: Thumbnail, rois: Sequence[Roi], cells: Cells, name: str) -> Markup:
    """Return a field twice: plain, and with a mark on each of `cells`; `name` is unique on the page.

    A positive cell is a ring, a negative one a dot, both on white.
    """
    xs, ys = picture.x_px(cells.x_um).tolist(), picture.y_px(cells.y_um).tolist()
    ring, dot = _RING_UM / picture.region.mpp, _DOT_UM / picture.region.mpp
    casings, marks = [], []
    for x, y, positive in zip(xs, ys, cells.positive.tolist(), strict=True):
        if positive:
            casings.append(element("circle", class_="casing", cx=x, cy=y, r=ring))
        marks.append(element("circle", class_="pos" if positive else "neg", cx=x, cy=y, r=ring if positive else dot))
    again = element("use", href=f"#{name}")
    return _svg(picture, "Plain field", _image(picture, id=name), _scale_bar(picture)) + _svg(
        picture,
        f"The same field with {len(cells)} marked cells",
        again,
        *_outlines(picture, rois),
        *casings,
        *marks,
    )


def _svg(picture: Thumbnail, label: str, *layers: Markup) -> Markup:
    height, width = picture.pixels.shape[:2]
    return element(
        "svg",
        *layers,
        class_="picture",
        role="img",
        aria_label=label,
        viewBox=f"0 0 {width} {height}",
        preserveAspectRatio="xMinYMin",
        width=width,
        height=height,
    )


def _image(picture: Thumbnail, *, class_: str | None = None, id: str | None = None) -> Markup:  # noqa: A002
    height, width = picture.pixels.shape[:2]
    return element("image", class_=class_, id=id, width=width, height=height, href=picture.data_uri)


def _outlines(picture: Thumbnail, rois: Sequence[Roi]) -> list[Markup]:
    drawn = []
    for roi in rois:
        path = _path(picture, roi)
        drawn.append(element("path", class_="casing", d=path))
        drawn.append(element("path", element("title", roi.name), class_="outline", d=path))
    return drawn


def _path(picture: Thumbnail, roi: Roi) -> str:
    """Return a ROI's rings as the ``d`` of a path."""
    simple = shapely.simplify(roi.outline_um, 0.5 * picture.region.mpp)
    path = ""
    for ring in shapely.get_rings(shapely.get_parts(simple)):
        x_um, y_um = shapely.get_coordinates(ring).T
        corners = zip(picture.x_px(x_um).tolist(), picture.y_px(y_um).tolist(), strict=True)
        path += "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners) + "Z"
    return path


def _names(picture: Thumbnail, rois: Sequence[Roi]) -> list[Markup]:
    height, width = picture.pixels.shape[:2]
    size = max(width, height) / 42
    drawn = []
    for roi in rois:
        left, top, _, _ = roi.outline_um.bounds
        x = min(max(float(picture.x_px(left)), 0) + size * 0.4, width * 0.9)
        y = min(max(float(picture.y_px(top)), 0) + size * 1.2, height - size * 0.4)
        shown = roi.name if len(roi.name) <= 24 else roi.name[:23] + "…"
        drawn.append(element("text", shown, class_="name", x=x, y=y, font_size=size))
    return drawn


def _square(picture: Thumbnail, square: Coloured) -> Markup:
    left, top, right, _ = square.bounds_um
    side = (right - left) / picture.region.mpp
    return element(
        "rect",
        element("title", square.title),
        x=float(picture.x_px(left)),
        y=float(picture.y_px(top)),
        width=side,
        height=side,
        fill=_COLOURS[_step(square)],
    )


def _circles(picture: Thumbnail, field: CountedField) -> tuple[Markup, Markup]:
    place = {
        "cx": float(picture.x_px(np.float64(field.x_um))),
        "cy": float(picture.y_px(np.float64(field.y_um))),
        "r": field.radius_um / picture.region.mpp,
    }
    title = element("title", f"{field.name}: {field.index:.0f} %, {field.n_positive} of {field.n}")
    kind = "counted hot" if field.n > FIELD_CELLS else "counted"
    return element("circle", class_="counted casing", **place), element("circle", title, class_=kind, **place)


def _square_number(picture: Thumbnail, square: Coloured, whole_um: shapely.Geometry) -> Markup:
    """Return the square's number written in what of it lies in the ROIs, where there is space for it."""
    left, _, right, _ = square.bounds_um
    side = (right - left) / picture.region.mpp
    if side < max(picture.pixels.shape) / 16:
        return Markup("")
    seen = shapely.intersection(shapely.box(*square.bounds_um), whole_um)
    middle = seen.centroid if seen.contains(seen.centroid) else seen.representative_point()
    size = min(side * 0.3, max(picture.pixels.shape) / 28)
    return element(
        "text",
        f"{square.value:.0f}",
        class_="on-light" if _step(square) < 3 else "on-dark",
        x=float(picture.x_px(middle.x)),
        y=float(picture.y_px(middle.y)) + size * 0.35,
        font_size=size,
    )


def _step(square: Coloured) -> int:
    return min(int(np.searchsorted(_STEPS, square.value, side="right")) - 1, len(_COLOURS) - 1)


def _scale_bar(picture: Thumbnail) -> Markup:
    height, width = picture.pixels.shape[:2]
    length = max((um for um in _BARS_UM if um / picture.region.mpp <= width / 4), default=_BARS_UM[0])
    bar, size = length / picture.region.mpp, max(width, height) / (36 if max(width, height) > 600 else 18)
    words = f"{length / 1000:g} mm" if length >= 1000 else f"{length} µm"
    x, y = width - size - bar, height - size
    return element(
        "g",
        element("rect", x=x, y=y, width=bar, height=math.ceil(size / 5)),
        element("text", words, x=x + bar / 2, y=y - size * 0.4, font_size=size),
        class_="scale",
    )
