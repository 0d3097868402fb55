"""Augmentation of rendered fields: rotation, scale, stain, brightness, blur, noise, JPEG; and crops of real tiles."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.training.targets import OTHERS

__all__ = [
    "MARGIN_PX",
    "blank_edge",
    "counterstain",
    "crop",
    "defocus",
    "drop_invisible",
    "fade",
    "perturb",
    "warp",
    "without_margin",
]

MARGIN_PX = 16
"""Margin of the cells around a crop, so that nuclei at its edge keep their true centroid."""

_SCALE = (-0.08, 0.2)  # mean and standard deviation of the logarithm of the magnification
_UNFADED = 0.5  # fraction of tiles whose nuclei keep their stain
_FADED_TO = (0.4, 1.0)
_DEFOCUSED = 0.5  # fraction of tiles with some nuclei out of focus
_OUT_OF_FOCUS = (0.05, 0.6)  # range of the fraction of nuclei out of focus in such a tile
_DEFOCUS_PX = (0.8, 2.5)  # range of the blur (standard deviation)
_DOUBTFUL_PX = 1.2  # a nucleus blurred more than this is not counted where there is stroma
_STROMA = 0.1  # minimum fraction of nuclear pixels from non-tumour nuclei in a tile with stroma
_AT_AN_EDGE = 0.2  # fraction of tiles that cross the edge of a slide
_COUNTERSTAINED = 0.35  # fraction of tiles whose positive nuclei take more hematoxylin
_MORE_OD = 0.8  # maximum of the added optical density
_HEMATOXYLIN = np.array([0.650, 0.704, 0.286], np.float32)  # Ruifrok & Johnston 2001
_MIRRORED_PX = 128  # mirrored border around a field
_MIN_SCALE = 0.65
_COPY = 1000  # added per mirrored copy: more than the nuclei of a field; eight times that stays below `OTHERS`
_BACKGROUND_PX = 6.0  # scale of the local background (standard deviation)
_MIN_OD = 0.012  # visible root mean square difference of a nucleus from its background, in one channel
_MIN_NOISES = 2.5  # the same, in median absolute deviations of the background
_MIN_PX = 12  # smaller parts of nuclei are always kept

Picture = npt.NDArray[np.uint8]
CellMap = npt.NDArray[np.integer[Any]]


def crop(rng: np.random.Generator, rgb: npt.NDArray[Any], side_px: int) -> npt.NDArray[Any]:
    """Cut a random square out of a picture, rotated by a multiple of 90° and flipped.

    Parameters
    ----------
    rng
        Random generator.
    rgb
        (H, W) or (H, W, C), at least `side_px` a side.
    side_px
        Side of the square.

    Returns
    -------
    (side, side) or (side, side, C); pixel values are not changed.
    """
    top, left = (int(rng.integers(0, length - side_px + 1)) for length in rgb.shape[:2])
    square = np.rot90(rgb[top : top + side_px, left : left + side_px], int(rng.integers(4)))
    return np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square)


def warp(rng: np.random.Generator, rgb: Picture, cells: CellMap, side_px: int) -> tuple[Picture, npt.NDArray[np.int32]]:
    """Cut a random square of a rendered field, rotated, flipped and scaled.

    Parameters
    ----------
    rng
        Random generator.
    rgb, cells
        (H, W, 3) and (H, W) of the field.
    side_px
        Side of the square; beyond the field, the field is mirrored.

    Returns
    -------
    rgb, cells
        (side, side, 3) in 0..255, and (side + 32, side + 32): the cells of the square with a margin of 16 px.
    """
    rgb = np.asarray(cv2.copyMakeBorder(rgb, *(_MIRRORED_PX,) * 4, cv2.BORDER_REFLECT), np.uint8)
    cells = _mirrored(cells)
    height, width = (length - 2 * _MIRRORED_PX for length in cells.shape)
    side = side_px + 2 * MARGIN_PX
    slack = max((min(height, width) - side_px) / 2, 0)
    x, y = (_MIRRORED_PX + length / 2 + rng.uniform(-slack, slack) for length in (width, height))
    free = rng.random() < 0.5
    angle = float(rng.uniform(0, 2 * np.pi)) if free else float(rng.integers(4)) * np.pi / 2
    scale = max(float(np.exp(rng.normal(*_SCALE))), _MIN_SCALE) if free else 1.0
    if not free:
        x, y = round(x) + 0.5 * (side % 2), round(y) + 0.5 * (side % 2)  # whole pixels stay as they are
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1.0] / scale
    middle = (side - 1) / 2
    matrix = np.column_stack([rotation, np.array([x - 0.5, y - 0.5]) - rotation @ [middle, middle]])
    size, border = (side, side), cv2.BORDER_REFLECT
    flags = cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(np.ascontiguousarray(rgb), matrix, size, flags=flags | cv2.INTER_LINEAR, borderMode=border)
    warped = cv2.warpAffine(
        np.ascontiguousarray(cells, np.int16), matrix, size, flags=flags | cv2.INTER_NEAREST, borderMode=border
    )
    inside = slice(MARGIN_PX, MARGIN_PX + side_px)
    return np.ascontiguousarray(picture[inside, inside]), warped.astype(np.int32)


def _mirrored(cells: CellMap) -> CellMap:
    """Return cells with a mirrored border; nuclei in it get new numbers, except those that the edge cuts."""
    wide = cv2.copyMakeBorder(np.ascontiguousarray(cells, np.int16), *(_MIRRORED_PX,) * 4, cv2.BORDER_REFLECT)
    cut = np.zeros(int(np.abs(cells).max(initial=0)) + 1, np.int16)
    for edge in (cells[0], cells[-1], cells[:, 0], cells[:, -1]):
        cut[np.abs(edge)] = 1
    rows, columns = (np.repeat([0, 1, 2], [_MIRRORED_PX, length, _MIRRORED_PX]) for length in cells.shape)
    copy = np.array([[1, 2, 3], [4, 0, 5], [6, 7, 8]], np.int16)[rows[:, None], columns]
    return np.asarray(wide + np.sign(wide) * copy * np.int16(_COPY) * (1 - cut[np.abs(wide)]), np.int16)


def counterstain(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> Picture:
    """Add hematoxylin to the positive nuclei of some tiles, a random amount each; some stains are black-violet.

    Parameters
    ----------
    rng
        Random generator.
    rgb, cells
        (H, W, 3) in 0..255 and (H, W).

    Returns
    -------
    (H, W, 3) in 0..255.
    """
    if rng.random() > _COUNTERSTAINED:
        return rgb
    n = int(np.abs(cells).max(initial=0)) + 1
    more = (rng.uniform(0, _MORE_OD) * rng.random(n)).astype(np.float32)
    od = cv2.GaussianBlur(np.where(cells > 0, more[np.abs(cells)], np.float32(0)), (0, 0), 0.8)
    value = rgb * np.power(10, -od[..., None] * _HEMATOXYLIN)
    return np.asarray(value + 0.5, np.uint8)


def fade(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> Picture:
    """Make the nuclei of some tiles paler, a random amount each, as in pale stains and thin sections.

    Parameters
    ----------
    rng
        Random generator.
    rgb, cells
        (H, W, 3) in 0..255 and (H, W).

    Returns
    -------
    (H, W, 3) in 0..255; positive nuclei keep at least 0.7 of their stain.
    """
    if rng.random() < _UNFADED:
        return rgb
    n = int(np.abs(cells).max(initial=0)) + 1
    kept = np.clip(rng.uniform(*_FADED_TO) * np.exp(rng.normal(0, 0.2, n)), 0.4, 1).astype(np.float32)
    kept_stain = np.where(cells > 0, np.maximum(kept, 0.7)[np.abs(cells)], kept[np.abs(cells)])
    kept_stain = cv2.GaussianBlur(np.where(cells == 0, np.float32(1), kept_stain), (0, 0), 0.8)[..., None]
    od = -np.log10(np.maximum(rgb, 1).astype(np.float32) / 255)
    ground = np.percentile(od[::2, ::2], 25, axis=(0, 1)).astype(np.float32)
    value = np.power(10, -(ground + (od - ground) * kept_stain)) * 255
    return np.clip(value + 0.5, 0, 255).astype(np.uint8)


def defocus(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> Picture:
    """Blur some nuclei of some tiles, as in a thick section.

    In stroma, a nucleus that is well out of focus cannot be assigned to the tumour; annotators leave it out.

    Parameters
    ----------
    rng
        Random generator.
    rgb, cells
        (H, W, 3) in 0..255, and (H + 32, W + 32) from `warp`; blurred nuclei in stroma get numbers from
        `wsiscore.training.targets.OTHERS` on, in place.

    Returns
    -------
    (H, W, 3) in 0..255.
    """
    if rng.random() > _DEFOCUSED:
        return rgb
    number = np.abs(cells)
    far = (rng.random(int(number.max(initial=0)) + 1) < rng.uniform(*_OUT_OF_FOCUS))[number] & (number > 0)
    sigma_px = float(rng.uniform(*_DEFOCUS_PX))
    if sigma_px > _DOUBTFUL_PX and (number >= OTHERS).sum() > _STROMA * (number > 0).sum():
        cells += np.sign(cells) * OTHERS * (far & (number < OTHERS))
    where = cv2.dilate(without_margin(far[None])[0].astype(np.float32), np.ones((3, 3), np.uint8), iterations=2)
    where = cv2.GaussianBlur(where, (0, 0), sigma_px)[..., None]
    value = rgb.astype(np.float32)
    return np.asarray(value + where * (cv2.GaussianBlur(value, (0, 0), sigma_px) - value) + 0.5, np.uint8)


def blank_edge(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> None:
    """Make a strip of some tiles white and free of nuclei, in place, as beyond the edge of a slide.

    Parameters
    ----------
    rng
        Random generator.
    rgb, cells
        (H, W, 3) in 0..255, and (H + 32, W + 32) from `warp`.
    """
    if rng.random() > _AT_AN_EDGE:
        return
    side = rgb.shape[0]
    strip = int(rng.uniform(0.05, 0.7) * side)
    turns = int(rng.integers(4))
    np.rot90(rgb, turns)[:strip] = 255
    np.rot90(cells, turns)[: strip + MARGIN_PX] = 0


def perturb(rng: np.random.Generator, rgb: Picture) -> Picture:
    """Vary stain, brightness, sharpness, noise and JPEG quality, as laboratories and scanners do.

    Parameters
    ----------
    rng
        Random generator.
    rgb
        (H, W, 3) in 0..255.

    Returns
    -------
    (H, W, 3) in 0..255.
    """
    od = -np.log10(np.maximum(rgb, 1).astype(np.float32) / 255)
    od *= np.exp(rng.normal(-0.05, 0.2)) * np.exp(rng.normal(0, 0.05, 3))
    od -= rng.uniform(-0.02, 0.02) + rng.normal(0, 0.012, 3)
    value = np.power(10, -np.maximum(od, 0), dtype=np.float32) * 255
    if rng.random() < 0.3:
        value = cv2.GaussianBlur(value, (0, 0), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.2:
        soft = cv2.GaussianBlur(value, (0, 0), float(rng.uniform(0.7, 1.5)))
        value += float(rng.uniform(0.2, 1.0)) * (value - soft)
    if rng.random() < 0.4:
        value += rng.normal(0, rng.uniform(0.5, 5), value.shape).astype(np.float32)
    picture = np.clip(value + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        coded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 95))])[1]
        picture = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]
    return np.ascontiguousarray(picture)


def drop_invisible(rgb: Picture, cells: CellMap) -> None:
    """Remove nuclei from the truth, in place, that hardly differ from the background around them.

    Parameters
    ----------
    rgb, cells
        (H, W, 3) in 0..255, and (H + 32, W + 32) from `warp`.
    """
    od = cv2.GaussianBlur(-np.log10(np.maximum(rgb, 1).astype(np.float32) / 255), (0, 0), 1.2)
    of = np.abs(without_margin(cells[None])[0])
    bare = (of == 0).astype(np.float32)
    near = cv2.GaussianBlur(bare, (0, 0), _BACKGROUND_PX) + np.float32(1e-3)
    n = np.bincount(of.ravel())
    seen = np.zeros(len(n), bool)
    for channel in range(3):
        dye = np.ascontiguousarray(od[..., channel])
        apart = dye - (cv2.GaussianBlur(dye * bare, (0, 0), _BACKGROUND_PX) + np.float32(1e-3) * dye.min()) / near
        noise = float(np.median(np.abs(apart[of == 0]))) if bare.any() else 0.0
        square = np.bincount(of.ravel(), np.square(apart).ravel()) / np.maximum(n, 1)
        seen |= np.sqrt(square) >= max(_MIN_OD, _MIN_NOISES * noise)
    shown = np.zeros(int(np.abs(cells).max(initial=0)) + 1, bool)
    shown[: len(seen)] = seen | (n < _MIN_PX)
    shown[len(seen) :] = True
    cells[~shown[np.abs(cells)]] = 0


def without_margin(maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Remove the margin from maps: (C, side + 32, side + 32) -> (C, side, side)."""
    return maps[:, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
