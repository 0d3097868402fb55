"""What a rendered tile goes through before it is learnt from: turns, scale, stain, light, blur, noise, JPEG."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.training.targets import OTHERS

__all__ = ["blank", "counterstain", "crop", "cut_and_turn", "defocus", "disturb", "fade", "forget_unseen", "inner"]

_SCALE = (-0.08, 0.2)  # mean and standard deviation of the logarithm of the magnification
_UNFADED = 0.5  # share of tiles whose nuclei keep their stain
_FADED_TO = (0.4, 1.0)
_DEFOCUSED = 0.5  # share of tiles in which some nuclei lie out of focus; of their nuclei; and by how much
_OUT_OF_FOCUS = (0.05, 0.6)
_DEFOCUS_PX = (0.8, 2.5)
_DOUBTFUL_PX = 1.2  # blurred more than this, a nucleus is not counted where others are
_STROMA = 0.1  # share of the nuclei's pixels that are others' in what counts as stroma
_AT_AN_EDGE = 0.2  # share of tiles that lie across a slide's edge
_COUNTERSTAINED = 0.35  # share of tiles whose positive nuclei take more hematoxylin, and how much at most
_MORE_OD = 0.8
_HEMATOXYLIN = np.array([0.650, 0.704, 0.286], np.float32)  # Ruifrok & Johnston 2001
_BEYOND_PX = 128  # mirrored around a field
_LEAST_SCALE = 0.65
_ZONE = 1000  # more than the nuclei of a field; eight times that stays below `OTHERS`
_AROUND_PX = 6.0  # how far around a nucleus its ground is looked at
_LEAST_OD = 0.012  # root mean square difference of a nucleus from it, in one colour, that can be seen
_LEAST_NOISES = 2.5  # and in median absolute deviations of the ground
_LEAST_PX = 12  # smaller parts of nuclei are not judged
_RIM_PX = 16  # cut around a tile first, so that nuclei at its edge keep their true centroid

Picture = npt.NDArray[np.uint8]
CellMap = npt.NDArray[np.integer[Any]]


def crop(rng: np.random.Generator, rgb: Picture, side_px: int) -> Picture:
    """Cut a square out of a real tile, mirrored and turned by quarters; (side, side, 3)."""
    top, left = (int(rng.integers(0, length - side_px + 1)) for length in rgb.shape[:2])
    square = np.rot90(rgb[top : top + side_px, left : left + side_px], int(rng.integers(4)))
    return np.ascontiguousarray(square[:, ::-1] if rng.random() < 0.5 else square)


def cut_and_turn(
    rng: np.random.Generator, rgb: Picture, cells: CellMap, side_px: int
) -> tuple[Picture, npt.NDArray[np.int32]]:
    """Cut a square of a rendered field, turned, mirrored and magnified by chance.

    Parameters
    ----------
    rng
        Source of randomness.
    rgb, cells
        (H, W, 3) and (H, W) of the field.
    side_px
        Side of the square; what lies beyond the field is mirrored into it.

    Returns
    -------
    rgb, cells
        (side, side, 3) in 0..255, and (side + 32, side + 32): the square's cells with a rim of 16 px.
    """
    rgb = np.asarray(cv2.copyMakeBorder(rgb, *(_BEYOND_PX,) * 4, cv2.BORDER_REFLECT), np.uint8)
    cells = _mirrored(cells)
    height, width = (length - 2 * _BEYOND_PX for length in cells.shape)
    side = side_px + 2 * _RIM_PX
    slack = max((min(height, width) - side_px) / 2, 0)
    x, y = (_BEYOND_PX + length / 2 + rng.uniform(-slack, slack) for length in (width, height))
    free = rng.random() < 0.5
    angle = float(rng.uniform(0, 2 * np.pi)) if free else float(rng.integers(4)) * np.pi / 2
    scale = max(float(np.exp(rng.normal(*_SCALE))), _LEAST_SCALE) if free else 1.0
    if not free:
        x, y = round(x) + 0.5 * (side % 2), round(y) + 0.5 * (side % 2)  # whole pixels stay as they are
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * [mirror, 1.0] / scale
    middle = (side - 1) / 2
    matrix = np.column_stack([turn, np.array([x - 0.5, y - 0.5]) - turn @ [middle, middle]])
    size, border = (side, side), cv2.BORDER_REFLECT
    flags = cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(np.ascontiguousarray(rgb), matrix, size, flags=flags | cv2.INTER_LINEAR, borderMode=border)
    turned = cv2.warpAffine(
        np.ascontiguousarray(cells, np.int16), matrix, size, flags=flags | cv2.INTER_NEAREST, borderMode=border
    )
    inner = slice(_RIM_PX, _RIM_PX + side_px)
    return np.ascontiguousarray(picture[inner, inner]), turned.astype(np.int32)


def _mirrored(cells: CellMap) -> CellMap:
    """Return cells with a mirrored rim; nuclei in it get numbers of their own, but for those the edge cuts."""
    wide = cv2.copyMakeBorder(np.ascontiguousarray(cells, np.int16), *(_BEYOND_PX,) * 4, cv2.BORDER_REFLECT)
    cut = np.zeros(int(np.abs(cells).max(initial=0)) + 1, np.int16)
    for edge in (cells[0], cells[-1], cells[:, 0], cells[:, -1]):
        cut[np.abs(edge)] = 1
    rows, columns = (np.repeat([0, 1, 2], [_BEYOND_PX, length, _BEYOND_PX]) for length in cells.shape)
    zone = np.array([[1, 2, 3], [4, 0, 5], [6, 7, 8]], np.int16)[rows[:, None], columns]
    return np.asarray(wide + np.sign(wide) * zone * np.int16(_ZONE) * (1 - cut[np.abs(wide)]), np.int16)


def counterstain(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> Picture:
    """Give the positive nuclei of some tiles more hematoxylin, each its own: some laboratories' are black-violet.

    Parameters
    ----------
    rng
        Source of randomness.
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
    """Bleach the nuclei of some tiles, each to its own degree, as pale stains and thin sections show them.

    Parameters
    ----------
    rng
        Source of randomness.
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
    share = np.where(cells > 0, np.maximum(kept, 0.7)[np.abs(cells)], kept[np.abs(cells)])
    share = cv2.GaussianBlur(np.where(cells == 0, np.float32(1), share), (0, 0), 0.8)[..., None]
    od = -np.log10(np.maximum(rgb, 1).astype(np.float32) / 255)
    ground = np.percentile(od[::2, ::2], 25, axis=(0, 1)).astype(np.float32)
    value = np.power(10, -(ground + (od - ground) * share)) * 255
    return np.clip(value + 0.5, 0, 255).astype(np.uint8)


def defocus(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> Picture:
    """Blur some nuclei of some tiles, as those above and below the plane of focus are in a thick section.

    Amid stroma a nucleus that is well out of focus is not the tumour's for certain, and annotators leave it out.

    Parameters
    ----------
    rng
        Source of randomness.
    rgb, cells
        (H, W, 3) in 0..255, and (H + 32, W + 32) as `cut_and_turn` gives them; blurred nuclei amid stroma get numbers
        from `wsiscore.training.targets.OTHERS` on, in place.

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
    where = cv2.dilate(inner(far[None])[0].astype(np.float32), np.ones((3, 3), np.uint8), iterations=2)
    where = cv2.GaussianBlur(where, (0, 0), sigma_px)[..., None]
    value = rgb.astype(np.float32)
    return np.asarray(value + where * (cv2.GaussianBlur(value, (0, 0), sigma_px) - value) + 0.5, np.uint8)


def blank(rng: np.random.Generator, rgb: Picture, cells: CellMap) -> None:
    """Blank a strip of some tiles, in place, as what lies beyond a slide's edge is read: white, and without nuclei.

    Parameters
    ----------
    rng
        Source of randomness.
    rgb, cells
        (H, W, 3) in 0..255, and (H + 32, W + 32) as `cut_and_turn` gives them.
    """
    if rng.random() > _AT_AN_EDGE:
        return
    side = rgb.shape[0]
    strip = int(rng.uniform(0.05, 0.7) * side)
    turns = int(rng.integers(4))
    np.rot90(rgb, turns)[:strip] = 255
    np.rot90(cells, turns)[: strip + _RIM_PX] = 0


def disturb(rng: np.random.Generator, rgb: Picture) -> Picture:
    """Change stain, light and camera of (H, W, 3) by chance, as laboratories and scanners differ; same shape."""
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


def forget_unseen(rgb: Picture, cells: CellMap) -> None:
    """Take nuclei out of the truth, in place, that hardly differ from the ground around them.

    Parameters
    ----------
    rgb, cells
        (H, W, 3) in 0..255, and (H + 32, W + 32) as `cut_and_turn` gives them.
    """
    od = cv2.GaussianBlur(-np.log10(np.maximum(rgb, 1).astype(np.float32) / 255), (0, 0), 1.2)
    of = np.abs(inner(cells[None])[0])
    bare = (of == 0).astype(np.float32)
    near = cv2.GaussianBlur(bare, (0, 0), _AROUND_PX) + np.float32(1e-3)
    n = np.bincount(of.ravel())
    seen = np.zeros(len(n), bool)
    for channel in range(3):
        dye = np.ascontiguousarray(od[..., channel])
        apart = dye - (cv2.GaussianBlur(dye * bare, (0, 0), _AROUND_PX) + np.float32(1e-3) * dye.min()) / near
        noise = float(np.median(np.abs(apart[of == 0]))) if bare.any() else 0.0
        square = np.bincount(of.ravel(), np.square(apart).ravel()) / np.maximum(n, 1)
        seen |= np.sqrt(square) >= max(_LEAST_OD, _LEAST_NOISES * noise)
    shown = np.zeros(int(np.abs(cells).max(initial=0)) + 1, bool)
    shown[: len(seen)] = seen | (n < _LEAST_PX)
    shown[len(seen) :] = True
    cells[~shown[np.abs(cells)]] = 0


def inner(maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Take the rim off (C, side + 32, side + 32) maps made of `cut_and_turn`'s cells."""
    return maps[:, _RIM_PX:-_RIM_PX, _RIM_PX:-_RIM_PX]
