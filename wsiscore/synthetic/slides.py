"""Synthetic whole slides (SVS, ROIs, nuclei) and synthetic fields in several stains, written to disk.

A small slide is rendered in one piece. A larger one repeats one rendered block, mirrored at its edges, and is written
strip by strip in constant memory.
"""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from shapely import Polygon
from shapely.geometry import mapping

from wsiscore.errors import OutputError
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import FieldTruth, render_field
from wsiscore.synthetic.ground import Layout, smooth_noise
from wsiscore.synthetic.nuclei import KINDS
from wsiscore.synthetic.pairs import render_pair
from wsiscore.synthetic.svs import STRIP_PX, Strip, write_svs

__all__ = ["Truth", "read_truth", "render_pairs", "render_slide", "write_svs"]

Picture = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]

_BLOCK_PX = 3584  # greatest side of a slide rendered in one piece
_DIFFICULTY = 0.15  # of a slide's appearance
_MARGIN_UM = 12.0  # distance of nuclei from a block's edge: mirrored ones must not overlap


@dataclass(frozen=True, slots=True)
class Truth:
    """The nuclei of a rendered slide as columns of one length.

    Parameters
    ----------
    x_um, y_um
        Centre in micrometres from the slide's top left.
    positive
        Whether the nucleus is stained with DAB.
    kind
        One of `wsiscore.synthetic.nuclei.KINDS`.
    roi
        Name of the ROI that contains it; empty outside all.
    """

    x_um: npt.NDArray[np.float64]
    y_um: npt.NDArray[np.float64]
    positive: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.str_]
    roi: npt.NDArray[np.str_]

    @property
    def ki67_index(self) -> float:
        """Positive in percent of all tumour nuclei in the ROIs; nan if there is none."""
        counted = self.positive[(self.kind == "tumour") & (self.roi != "")]
        return 100 * float(counted.mean()) if len(counted) else float("nan")

    @classmethod
    def of(cls, field: FieldTruth, rois: dict[str, Polygon]) -> Self:
        """Return the nuclei of a field with the ROI of each."""
        return cls.inside(field.x_um, field.y_um, field.positive, np.array(KINDS)[field.kind], rois)

    @classmethod
    def inside(
        cls,
        x_um: npt.NDArray[np.float64],
        y_um: npt.NDArray[np.float64],
        positive: npt.NDArray[np.bool_],
        kind: npt.NDArray[np.str_],
        rois: dict[str, Polygon],
    ) -> Self:
        """Return nuclei with the ROI of each; outlines in micrometres."""
        roi = np.full(len(x_um), "", dtype="U32")
        for name, outline in rois.items():
            shapely.prepare(outline)
            roi[shapely.contains_xy(outline, x_um, y_um)] = name
        return cls(x_um, y_um, positive, kind, roi)

    def write(self, path: Path) -> None:
        """Write CSV with ``x_um,y_um,class,kind,roi``: one nucleus per line, positions to 0.01 µm."""
        with path.open("w", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["x_um", "y_um", "class", "kind", "roi"])
            names = np.where(self.positive, "positive", "negative")
            for x, y, name, kind, roi in zip(self.x_um, self.y_um, names, self.kind, self.roi, strict=True):
                rows.writerow([f"{x:.2f}", f"{y:.2f}", name, kind, roi])


def read_truth(path: Path) -> Truth:
    """Read a file of `Truth.write`."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Truth(
        np.array([float(row["x_um"]) for row in rows]),
        np.array([float(row["y_um"]) for row in rows]),
        np.array([row["class"] == "positive" for row in rows], bool),
        np.array([row["kind"] for row in rows], dtype=str),
        np.array([row["roi"] for row in rows], dtype=str),
    )


def render_slide(
    folder: Path,
    name: str,
    *,
    index: float,
    width_px: int,
    height_px: int,
    mpp: float = 0.25,
    seed: int = 0,
) -> Path:
    """Write ``name.svs``, its ROIs ``name.geojson`` in QuPath's format, and its nuclei ``name.truth.csv``.

    Parameters
    ----------
    folder
        Output folder; made if it is missing.
    name
        Stem of the three files.
    index
        Ki67 index in percent.
    width_px, height_px
        Size of level 0.
    mpp
        Micrometres per pixel.
    seed
        The same seed gives the same slide.

    Returns
    -------
    Path
        The SVS file.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    rng = np.random.default_rng(seed)
    appearance = _scanned(rng)
    section = _Section.random(rng, width_px * mpp, height_px * mpp)
    render = _render_whole if max(width_px, height_px) <= _BLOCK_PX else _render_mirrored
    strip, truth = render(rng, section, width_px, height_px, mpp, appearance, index)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        truth.write(folder / f"{name}.truth.csv")
        (folder / f"{name}.geojson").write_text(_geojson(section.rois, mpp, seed))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error}; choose another folder") from error
    path = folder / f"{name}.svs"
    write_svs(path, strip, width_px, height_px, mpp)
    return path


def render_pairs(
    folder: Path, name: str, n: int, stains: Sequence[str], *, index: float | None, side_px: int, mpp: float, seed: int
) -> Path:
    """Write fields in several stains: ``<stain>/<name>-<number>.png``, and the nuclei ``truth/<name>-<number>.csv``.

    Parameters
    ----------
    folder
        Output folder; made if it is missing, and returned.
    name, n
        Stem of the files; number of fields.
    stains
        Names from `wsiscore.synthetic.stains.STAINS`.
    index
        Ki67 index in percent; None samples one for each field.
    side_px, mpp
        Side of a field, and micrometres per pixel.
    seed
        The same seed gives the same fields.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    try:
        for part in (*stains, "truth"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        for number in range(n):
            pair = render_pair(np.random.default_rng([seed, number]), side_px, side_px, mpp, stains, index=index)
            for stain, picture in pair.pictures.items():
                (folder / stain / f"{name}-{number:04d}.png").write_bytes(
                    cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
                )
            Truth.of(pair, {}).write(folder / "truth" / f"{name}-{number:04d}.csv")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written to: {error}; choose another folder") from error
    return folder


def _scanned(rng: np.random.Generator) -> Appearance:
    """Sample the appearance of a dense tumour, cleanly stained and scanned."""
    level = float(rng.uniform(236, 245))
    return replace(
        Appearance.random(rng, _DIFFICULTY),
        glass=(level, level - 1, level - 2),  # a scanner balances its white
        density_mm2=float(rng.uniform(5500, 7000)),
        diameter_um=float(rng.uniform(7.5, 9)),
        stroma_mm2=700.0,
        lymphocytes_mm2=150.0,
        noise=0.5,
        artefacts=0.0,
        jpeg=0,
    )


@dataclass(frozen=True, slots=True)
class _Section:
    """Outlines of the tissue, of its tumour and of the ROIs, in micrometres."""

    tissue: Polygon
    tumour: Polygon
    rois: dict[str, Polygon]

    @classmethod
    def random(cls, rng: np.random.Generator, width_um: float, height_um: float) -> _Section:
        """Sample tissue with a tumour and an area in its middle that the ROI excludes."""
        half = np.array([width_um, height_um]) / 2
        edge_um = 0.04 * float(half.min())
        tissue = _blob(rng, half, half * 0.84, 0.10)
        tumour = _blob(rng, half, half * 0.80, 0.12).intersection(tissue.buffer(-2 * edge_um))
        tumour = max(shapely.get_parts(tumour), key=lambda part: part.area)
        hole = _blob(rng, half * rng.uniform(0.8, 1.2, 2), half * rng.uniform(0.11, 0.15), 0.08)
        roi = tumour.buffer(-edge_um).simplify(1.0).difference(hole)
        return cls(tissue, tumour.difference(hole.buffer(-edge_um / 2)), {"Tumour": roi})


def _blob(
    rng: np.random.Generator, centre: npt.NDArray[np.float64], half: npt.NDArray[np.float64], rough: float
) -> Polygon:
    """Return a round, irregular outline."""
    turn = np.linspace(0, 2 * np.pi, 240, endpoint=False)
    radius = np.ones_like(turn)
    for wave in range(2, 16):
        radius += rough * rng.normal(0, 1.5 / wave) * np.cos(wave * turn + rng.uniform(0, 2 * np.pi))
    radius *= min(1.0, 1.14 / radius.max())
    return Polygon(centre + half * (radius * np.array([np.cos(turn), np.sin(turn)])).T).buffer(0)


def _mask(outline: Polygon, mpp: float, shape: tuple[int, int], top: int = 0) -> Picture:
    """Return (H, W) from row `top` of the slide: 255 inside an outline, 0 outside."""
    mask = np.zeros(shape, np.uint8)
    for part in shapely.get_parts(outline):
        for ring, value in ((part.exterior, 255), *((hole, 0) for hole in part.interiors)):
            points = (shapely.get_coordinates(ring) / mpp - [0, top]) * 16
            cv2.fillPoly(mask, [points.round().astype(np.int32)], value, shift=4)
    return mask


def _nests(rng: np.random.Generator, shape: tuple[int, int], mpp: float) -> Plane:
    """Return (H, W): 1 in tumour nests, 0 in the strands of stroma between them."""
    septa = np.abs(smooth_noise(rng, shape, 90 / mpp) + 0.2 * smooth_noise(rng, shape, 20 / mpp))
    return np.clip((septa - np.float32(0.12)) * 12, 0, 1).astype(np.float32)


def _render_whole(
    rng: np.random.Generator,
    section: _Section,
    width_px: int,
    height_px: int,
    mpp: float,
    appearance: Appearance,
    index: float,
) -> tuple[Strip, Truth]:
    """Render a slide in one piece."""
    shape = height_px, width_px
    tumour = np.where(_mask(section.tumour, mpp, shape), _nests(rng, shape, mpp), np.float32(0))
    rough = smooth_noise(rng, shape, 60 / mpp) + 0.5 * smooth_noise(rng, shape, 12 / mpp)
    tissue = _mask(section.tissue, mpp, shape).astype(np.float32) / np.float32(255)
    tissue = cv2.GaussianBlur(tissue, (0, 0), 12 / mpp) + np.float32(0.13) * rough
    torn = smooth_noise(rng, shape, 40 / mpp) + np.float32(0.3) * rough - np.float32(2.3)
    clear = np.maximum(np.clip(0.5 - (tissue - 0.5) * 9, 0, 1), np.clip(torn * 6, 0, 1))
    field = render_field(rng, *shape, mpp, appearance=appearance, index=index, layout=Layout(tumour, clear))
    return (lambda top, bottom: field.rgb[top:bottom]), Truth.of(field, section.rois)


def _render_mirrored(
    rng: np.random.Generator,
    section: _Section,
    width_px: int,
    height_px: int,
    mpp: float,
    appearance: Appearance,
    index: float,
) -> tuple[Strip, Truth]:
    """Render one block, repeat it mirrored, and clip it to the outline of the tissue."""
    side = min(_BLOCK_PX, 2048)
    layout = Layout(_nests(rng, (side, side), mpp), np.zeros((side, side), np.float32))
    field = render_field(rng, side, side, mpp, appearance=appearance, index=index, layout=layout, margin_um=_MARGIN_UM)
    pair = np.concatenate([field.rgb, field.rgb[:, ::-1]], axis=1)
    wide = np.tile(pair, (1, -(-width_px // (2 * side)), 1))[:, :width_px]
    empty = np.full((STRIP_PX, width_px, 3), np.array(appearance.glass).round().astype(np.uint8))

    def strip(top: int, bottom: int) -> Picture:
        rows = np.arange(top, bottom) % (2 * side)
        picture = wide[np.where(rows < side, rows, 2 * side - 1 - rows)]
        tissue = _mask(section.tissue, mpp, (bottom - top, width_px), top)
        return np.asarray(cv2.copyTo(picture, tissue, empty[: bottom - top].copy()), np.uint8)

    length = side * mpp
    x, y, positive, kind = [], [], [], []
    for row in range(-(-height_px // side)):
        for column in range(-(-width_px // side)):
            x.append(column * length + (length - field.x_um if column % 2 else field.x_um))
            y.append(row * length + (length - field.y_um if row % 2 else field.y_um))
            positive.append(field.positive)
            kind.append(np.array(KINDS)[field.kind])
    xs, ys = np.concatenate(x), np.concatenate(y)
    shapely.prepare(section.tissue)
    there = shapely.contains_xy(section.tissue, xs, ys)
    columns = xs[there], ys[there], np.concatenate(positive)[there], np.concatenate(kind)[there]
    return strip, Truth.inside(*columns, section.rois)


def _geojson(rois: dict[str, Polygon], mpp: float, seed: int) -> str:
    """Return GeoJSON as QuPath exports annotations, in level-0 pixels from the top left."""
    features = [
        {
            "type": "Feature",
            "id": str(uuid.UUID(int=(seed << 32) + number, version=4)),
            "geometry": mapping(shapely.transform(outline, lambda points: (points / mpp).round(1))),
            "properties": {
                "objectType": "annotation",
                "name": name,
                "classification": {"name": "Tumor", "color": [200, 0, 0]},
            },
        }
        for number, (name, outline) in enumerate(rois.items())
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}) + "\n"
