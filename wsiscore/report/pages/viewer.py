"""What the viewer shows: tiles of the slide, the cells, regions, the local index and places to go to, as JSON."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from markupsafe import Markup

from wsiscore.analysis.protocols import FIELD_CELLS, CountedField
from wsiscore.cells.table import Cells, Edit
from wsiscore.regions import Roi
from wsiscore.report.local_index import MIN_LOCAL, count_squares, map_side_um
from wsiscore.report.pages.pictures import INDEX_COLOURS
from wsiscore.report.pyramid import Pyramid, Tile
from wsiscore.slide.slide import Slide
from wsiscore.threads import in_threads

__all__ = [
    "DETAIL_MPP",
    "MOST_BYTES",
    "MOST_CELLS",
    "Shown",
    "embedded",
    "least_certain",
    "pack_cells",
    "script",
    "served",
]

DETAIL_MPP = 0.5
"""About the finest resolution of the tiles in a report, in µm/px."""
MOST_CELLS = 500_000
"""Cells that are drawn at most; of more, only those where the report has the finest tiles."""
MOST_BYTES = 6_400_000
"""Of the tiles in a report."""
_TILE_PX = 256  # in a report
_AT_ONCE = 64  # tiles that are encoded side by side
_SERVED_PX = 512
_DOUBTFUL = 24
_RANDOM = 6
_CLOSE_UM = 40.0  # around a doubtful cell, at the finest resolution
_RANDOM_UM = 125.0  # the same around a random cell

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shown:
    """What is shown of a slide.

    Parameters
    ----------
    slide
        Read for the tiles.
    rois
        Regions in which cells were counted.
    cells
        The counted cells.
    others
        Nuclei that were found and do not count; None for none.
    fields
        The fields of the protocols, the hot spot last.
    settings
        Rules of the run by name, of which ``positive_od`` and ``sure`` say which cells are the least certain.
    name
        Of the slide's folder, with which a file of corrected cells begins.
    command
        Reads such a file, after ``--cells``.
    """

    slide: Slide
    rois: Sequence[Roi]
    cells: Cells
    others: Cells | None
    fields: Sequence[CountedField]
    settings: Mapping[str, Any]
    name: str
    command: str


def script() -> dict[str, Markup]:
    """Return the viewer's code, and its hash for the content security policy, under which no other runs."""
    folder = files("wsiscore.report") / "templates"
    code = "".join((folder / name).read_text(encoding="utf-8") for name in ("editing.js", "viewer.js"))
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    return {"code": Markup(code), "hash": Markup(f"sha256-{digest}")}


def embedded(shown: Shown, *, most_bytes: int = MOST_BYTES, most_cells: int = MOST_CELLS) -> dict[str, Any]:
    """Return the viewer's data with the tiles in it, for a page that needs nothing but itself.

    The whole slide is there coarsely; the hot spot, the fields of the protocols, the least certain cells and a few
    random places at about `DETAIL_MPP`; and then what else of the regions fits, coarser levels first, in each the tiles
    with the most cells first.

    Parameters
    ----------
    shown
        What is shown.
    most_bytes
        Of the tiles together, before base64 adds a third; the coarsest level is there in any case.
    most_cells
        Of more cells, only those at the finest resolution are there.
    """
    slide = shown.slide
    steps = max(0, round(np.log2(DETAIL_MPP / slide.mpp)))
    pyramid = Pyramid(slide, slide.mpp * 2**steps, _TILE_PX)
    doubtful, places = least_certain(shown.cells, shown.settings), _places(shown)
    images = _encoded(pyramid, _wanted(pyramid, shown, doubtful, places), most_bytes)
    finest = len(pyramid.level_mpp) - 1
    detailed = _in_tiles(pyramid, shown.cells, finest, images)
    kept = np.flatnonzero(detailed) if len(detailed) > most_cells else np.arange(len(detailed))
    values = _values(shown, pyramid, kept, doubtful, places)
    for level, about in enumerate(values["levels"]):
        about["images"] = {
            f"{col}_{row}": base64.b64encode(encoded).decode("ascii")
            for (own, col, row), encoded in images.items()
            if own == level
        }
    fraction = float(detailed.mean()) if len(detailed) else 1.0
    return values | {"detail": {"mpp": pyramid.mpp, "fraction": fraction}}


def served(shown: Shown) -> tuple[dict[str, Any], Pyramid]:
    """Return the viewer's data without tiles, and the tiles that it asks for as ``tile/<level>/<column>/<row>.jpg``."""
    pyramid = Pyramid(shown.slide, shown.slide.mpp, _SERVED_PX)
    doubtful, places = least_certain(shown.cells, shown.settings), _places(shown)
    return _values(shown, pyramid, np.arange(len(shown.cells)), doubtful, places), pyramid


def least_certain(cells: Cells, settings: Mapping[str, Any]) -> Ints:
    """Return the cells, at most 24, whose class was nearest to the other one, the nearest first.

    First those whose class the density of DAB decided, by its distance from the limit ``positive_od``, then the others
    by the distance of the positivity from one half. A cell that somebody edited is certain. Of equal distances the
    first cell comes first.
    """
    distance = np.abs(cells.positivity - 0.5)
    certain = np.ones(len(cells), np.bool_)
    if (limit := settings.get("positive_od")) is not None:
        sure = float(settings.get("sure", 1.0))
        certain = (np.maximum(cells.positivity, 1 - cells.positivity) >= sure) & (sure < 1)
        distance = np.where(certain, distance, np.abs(cells.dab_od - float(limit)))
    known = np.flatnonzero(np.isfinite(distance) & (cells.edit == Edit.NONE))
    return known[np.lexsort((distance[known], certain[known]))[:_DOUBTFUL]]


def pack_cells(cells: Cells, kind: npt.NDArray[np.uint8]) -> str:
    """Return cells as base64 of zlib of 12 planes of a byte a cell, for the viewer.

    The planes are x and the step of y from the cell before, three bytes each, lowest first, in 0.1 µm; confidence and
    positivity in 1/250, and the density of DAB in 1/100, 255 where they are undefined; the kind; and the region, two
    bytes, 65,535 for none.

    Parameters
    ----------
    cells
        Ordered by y.
    kind
        (N,): 0 negative, 1 positive, 2 not counted; 4 more of a cell that somebody edited.
    """
    tenths = [np.round(np.maximum(values, 0) * 10).astype(np.int64) for values in (cells.x_um, cells.y_um)]
    steps = np.diff(tenths[1], prepend=0)
    measured = ((cells.confidence, 1.0, 250), (cells.positivity, 1.0, 250), (cells.dab_od, 2.54, 100))
    measures = [
        np.where(np.isfinite(each), np.round(np.clip(np.nan_to_num(each), 0, most) * scale), 255)
        for each, most, scale in measured
    ]
    roi = np.where(cells.roi < 0, 65_535, np.minimum(cells.roi, 65_534))
    numbers = [tenths[0] >> shift for shift in (0, 8, 16)] + [steps >> shift for shift in (0, 8, 16)]
    planes = [*numbers, *measures, kind, roi, roi >> 8]
    packed = np.stack([np.asarray(plane).astype(np.int64) & 255 for plane in planes]).astype(np.uint8)
    return base64.b64encode(zlib.compress(packed.tobytes(), 6)).decode("ascii")


def _encoded(pyramid: Pyramid, wanted: Iterable[Tile], most_bytes: int) -> dict[Tile, bytes]:
    """Return the first tiles as JPEG, as many as fit, and in any case those of the coarsest level."""
    images: dict[Tile, bytes] = {}
    total, waiting = 0, iter(wanted)
    while some := list(islice(waiting, _AT_ONCE)):
        new = [tile for tile in dict.fromkeys(some) if tile not in images]
        for tile, encoded in zip(new, in_threads(pyramid.jpeg, new), strict=True):
            total += len(encoded)
            if total > most_bytes and tile[0] > 0:
                return images
            images[tile] = encoded
    return images


def _wanted(pyramid: Pyramid, shown: Shown, doubtful: Ints, places: list[dict[str, Any]]) -> Iterable[Tile]:
    """Yield tiles in the order of their use; some twice."""
    slide, cells = shown.slide, shown.cells
    levels = range(len(pyramid.level_mpp))
    yield from pyramid.tiles(0, (0, 0, slide.width_px * slide.mpp, slide.height_px * slide.mpp))
    around = [(place["x"], place["y"], place["r"]) for place in places if not place["random"]]
    around += [(float(cells.x_um[at]), float(cells.y_um[at]), _CLOSE_UM) for at in doubtful]
    around += [(place["x"], place["y"], place["r"]) for place in places if place["random"]]
    for x, y, r in around:
        yield from pyramid.tiles(levels[-1], (x - r, y - r, x + r, y + r))
    inside = shapely.union_all([roi.outline_um for roi in shown.rois])
    shapely.prepare(inside)
    for level in levels[1:]:
        tiles = list(pyramid.tiles(level, inside.bounds)) if not inside.is_empty else []
        boxes = shapely.box(*np.array([pyramid.region(tile).bounds_um for tile in tiles]).reshape(-1, 4).T)
        touched = [tile for tile, touches in zip(tiles, shapely.intersects(inside, boxes), strict=True) if touches]
        cols, rows = pyramid.size(level)
        counts = np.bincount(_tile_of(pyramid, cells, level), minlength=cols * rows)
        yield from sorted(touched, key=lambda tile: -counts[tile[2] * cols + tile[1]])


def _tile_of(pyramid: Pyramid, cells: Cells, level: int) -> Ints:
    """Return the number, row by row, of the tile of a level in which each cell lies."""
    side, (cols, rows) = pyramid.level_mpp[level] * pyramid.tile_px, pyramid.size(level)
    col, row = (np.clip(values // side, 0, None).astype(np.int64) for values in (cells.x_um, cells.y_um))
    return np.minimum(row, rows - 1) * cols + np.minimum(col, cols - 1)


def _in_tiles(pyramid: Pyramid, cells: Cells, level: int, tiles: Iterable[Tile]) -> Bools:
    """Return which cells lie in the tiles of a level among those given."""
    cols, rows = pyramid.size(level)
    there = np.zeros(cols * rows, np.bool_)
    there[[row * cols + col for own, col, row in tiles if own == level]] = True
    return there[_tile_of(pyramid, cells, level)]


def _values(shown: Shown, pyramid: Pyramid, kept: Ints, doubtful: Ints, places: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all but the tiles, with the cells that are `kept`."""
    slide, cells = shown.slide, shown.cells
    return {
        "name": shown.name,
        "command": shown.command if len(kept) == len(cells) else None,  # a file of corrected cells holds all
        "mpp": slide.mpp,
        "width": slide.width_px * slide.mpp,
        "height": slide.height_px * slide.mpp,
        "tile": pyramid.tile_px,
        "levels": [{"mpp": mpp} for mpp in pyramid.level_mpp],
        "cells": _cells(shown, kept, doubtful),
        "regions": [{"name": roi.name, "rings": _rings(roi)} for roi in shown.rois],
        "squares": _squares(cells, shown.rois) if len(cells) else None,
        "places": places,
    }


def _cells(shown: Shown, kept: Ints, doubtful: Ints) -> dict[str, Any]:
    """Return some of the counted cells and, with all of them, those that do not count, packed."""
    drawn, others = shown.cells.select(kept), shown.others
    kind = drawn.positive.astype(np.uint8)
    if others is not None and len(kept) == len(shown.cells):
        kind = np.concatenate([kind, np.full(len(others), 2, np.uint8)])
        drawn = drawn.with_others(others, sort=False)
    kind += np.where(drawn.edit == Edit.NONE, 0, 4).astype(np.uint8)
    order = np.lexsort((drawn.x_um, drawn.y_um))
    place = np.argsort(order)  # of each cell, among those packed
    numbered = np.full(len(shown.cells), -1)
    numbered[kept] = place[: len(kept)]
    return {
        "n": len(order),
        "counted": len(kept),
        "all": len(shown.cells),
        "others": int((kind & 3 == 2).sum()),
        "edited": int((kind >= 4).sum()),
        "packed": pack_cells(drawn.select(order), kind[order]),
        "doubtful": [int(at) for at in numbered[doubtful] if at >= 0],
    }


def _rings(roi: Roi) -> list[list[float]]:
    """Return a ROI's rings, each as x, y, x, y, … in micrometres."""
    simple = shapely.simplify(roi.outline_um, 0.5)
    rings = shapely.get_rings(shapely.get_parts(simple))
    return [np.round(shapely.get_coordinates(ring), 1).ravel().tolist() for ring in rings]


def _squares(cells: Cells, rois: Sequence[Roi]) -> dict[str, Any]:
    """Return the squares of the local index with enough cells: left, top, index, number of cells, in one row."""
    side = map_side_um(cells, rois)
    shown = [square for square in count_squares(cells, rois, side) if square.tally.n >= MIN_LOCAL]
    return {
        "side": side,
        "least": MIN_LOCAL,
        "steps": [[colour, high] for colour, _, high in INDEX_COLOURS],
        "rows": [
            number
            for square in shown
            for number in (*square.bounds_um[:2], round(square.tally.ki67_index, 1), square.tally.n)
        ],
    }


def _places(shown: Shown) -> list[dict[str, Any]]:
    """Return the fields of the protocols, the hot spot first, and a few random places with cells."""
    cells = shown.cells
    found = [
        {
            "name": f"{field.name[0].upper()}{field.name[1:]}: {field.index:.0f} %, {field.n_positive} of {field.n}",
            "x": field.x_um,
            "y": field.y_um,
            "r": field.radius_um,
            "hot": field.n > FIELD_CELLS,
            "random": False,
        }
        for field in reversed(shown.fields)
    ]
    at = np.random.default_rng(len(cells)).permutation(len(cells))[:_RANDOM]
    return found + [
        {"name": f"Random place {number}", "x": x, "y": y, "r": _RANDOM_UM, "hot": False, "random": True}
        for number, (x, y) in enumerate(zip(cells.x_um[at].tolist(), cells.y_um[at].tolist(), strict=True), 1)
    ]
