"""The whole slide as one picture with its regions and cells marked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image, ImageDraw, ImageFont

from wsiscore.cells.table import Cells
from wsiscore.files import replacing
from wsiscore.regions import Roi
from wsiscore.report.thumbnail import Thumbnail, jpeg, read_thumbnail
from wsiscore.slide.slide import Slide

__all__ = ["write_overlay"]

Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

POSITIVE: Colour = (215, 25, 28)
NEGATIVE: Colour = (0, 92, 230)
OUTLINE: Colour = (255, 210, 0)
_DARK: Colour = (30, 30, 30)
_WHITE: Colour = (255, 255, 255)
_NOTICE: Colour = (138, 75, 0)
_RING_UM = 4.0  # radius: just around most nuclei, so that the nucleus stays visible
_DOT_UM = 1.4
_LINE_UM = 0.5
_LEAST_RING_PX = 2.5  # a smaller ring looks like a dot
_FINER = 3  # the legend is drawn this much larger and shrunk, so that its edges are smooth
_SHIFT = 4  # OpenCV draws at sixteenths of a pixel
_LENGTHS_MM = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)


def write_overlay(path: Path, slide: Slide, rois: Sequence[Roi], cells: Cells, *, max_px: int = 4000) -> None:
    """Write a JPEG of the whole slide with region outlines and a mark on every cell.

    A positive cell is a red ring, a negative one a blue dot, both on white. Where a ring would be too small to be seen,
    a positive cell is a large dot and a negative one a small dot. A legend and a scale bar stand below the
    tissue, and above it, where that is so, that the stain is virtual.

    Parameters
    ----------
    path
        The file to write.
    slide
        What was scored.
    rois
        Outlines to draw.
    cells
        Positions in micrometres from the slide's top left.
    max_px
        Longest side of the picture of the slide.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    bounds = (0.0, 0.0, slide.width_px * slide.mpp, slide.height_px * slide.mpp)
    step = math.ceil(max(slide.width_px, slide.height_px) / max_px)  # whole pixels of the slide are averaged faster
    picture = read_thumbnail(slide, bounds, max_px=max_px, mpp=step * slide.mpp)
    draw_outlines(picture, rois)
    draw_cells(picture, cells)
    n_positive = int(np.count_nonzero(cells.positive))
    footer = _footer(picture, n_positive, len(cells) - n_positive)
    parts = [picture.pixels, footer]
    if slide.virtual:
        parts.insert(
            0,
            _notice(
                picture, f"Virtual stain by {slide.virtual.model}: the prediction of a network, not a stained slide"
            ),
        )
    encoded = jpeg(np.concatenate(parts), quality=88)
    with replacing(path) as part:
        part.write_bytes(encoded)


def draw_outlines(picture: Thumbnail, rois: Sequence[Roi]) -> None:
    """Draw the outlines, and those of their holes, into the picture: yellow on a dark casing."""
    rings = []
    for roi in rois:
        simple = shapely.simplify(roi.outline_um, 0.5 * picture.region.mpp)
        for ring in shapely.get_rings(shapely.get_parts(simple)):
            x_um, y_um = shapely.get_coordinates(ring).T
            corners = np.stack([picture.x_px(x_um), picture.y_px(y_um)], axis=1) - 0.5
            rings.append(np.round(corners * 2**_SHIFT).astype(np.int32))
    width = max(2, round(max(picture.pixels.shape) / 1000))
    for colour, thickness in ((_DARK, width + 2), (OUTLINE, width)):
        cv2.polylines(picture.pixels, rings, True, colour, thickness, cv2.LINE_AA, _SHIFT)


def draw_cells(picture: Thumbnail, cells: Cells) -> None:
    """Draw a ring for each positive cell and a dot for each negative one, as `write_overlay` says, into the picture."""
    mpp = picture.region.mpp
    rings = _RING_UM / mpp >= _LEAST_RING_PX
    line = max(1, round(_LINE_UM / mpp))
    radius = {
        True: _RING_UM / mpp if rings else max(0.5 * _RING_UM / mpp, 1.2),
        False: max(_DOT_UM / mpp, 1.2) if rings else 0.7,
    }
    xs = np.round((picture.x_px(cells.x_um) - 0.5) * 2**_SHIFT).astype(int).tolist()
    ys = np.round((picture.y_px(cells.y_um) - 0.5) * 2**_SHIFT).astype(int).tolist()
    places = list(zip(xs, ys, cells.positive.tolist(), strict=True))
    if rings:  # all the white first, so that it hides no mark
        for x, y, positive in places:
            size = round((radius[positive] + (0 if positive else 1)) * 2**_SHIFT)
            width = line + 2 if positive else cv2.FILLED
            cv2.circle(picture.pixels, (x, y), size, _WHITE, width, cv2.LINE_AA, _SHIFT)
    for x, y, positive in places:
        colour = POSITIVE if positive else NEGATIVE
        width = line if rings and positive else cv2.FILLED
        cv2.circle(picture.pixels, (x, y), round(radius[positive] * 2**_SHIFT), colour, width, cv2.LINE_AA, _SHIFT)


def _notice(picture: Thumbnail, words: str) -> Pixels:
    """Return a strip as wide as the picture that says what must not be missed, in letters that fit."""
    width = picture.pixels.shape[1]
    line = _line_px(width)
    size = line * 0.5 * min(1.0, width * 0.97 / ImageFont.load_default(line * 0.5).getlength(words))
    strip = Image.new("RGB", (width, line), _NOTICE)
    ImageDraw.Draw(strip).text((width / 2, line / 2), words, _WHITE, ImageFont.load_default(size), anchor="mm")
    return np.asarray(strip, np.uint8)


def _line_px(width: int) -> int:
    """Return the height of a line of words on a picture of this width."""
    return round(min(max(width / 50, 20), 56))


def _footer(picture: Thumbnail, n_positive: int, n_negative: int) -> Pixels:
    """Return a white strip as wide as the picture with the legend and a scale bar."""
    width = picture.pixels.shape[1]
    line = _line_px(width)
    big = line * _FINER
    font = ImageFont.load_default(big * 0.5)
    entries = [(POSITIVE, f"positive {n_positive}"), (NEGATIVE, f"negative {n_negative}"), (OUTLINE, "region")]
    length_mm = max((mm for mm in _LENGTHS_MM if mm * 1000 / picture.region.mpp <= width / 6), default=0.01)
    bar, scale = round(length_mm * 1000 / picture.region.mpp) * _FINER, f"{length_mm:g} mm"
    legend = sum(round(big * 1.3 + font.getlength(words)) for _, words in entries)
    two_lines = legend + bar + font.getlength(scale) + 2 * big > width * _FINER
    strip = Image.new("RGB", (width * _FINER, big * (2 if two_lines else 1)), _WHITE)
    draw = ImageDraw.Draw(strip)
    x, middle = big * 0.4, big // 2
    for colour, words in entries:
        if colour == OUTLINE:
            draw.line((x, middle, x + big * 0.5, middle), _DARK, big // 5)
            draw.line((x, middle, x + big * 0.5, middle), colour, big // 9)
        elif colour == POSITIVE:
            draw.circle((x + big * 0.25, middle), big * 0.22, outline=colour, width=max(_FINER, big // 12))
        else:
            draw.circle((x + big * 0.25, middle), big * 0.1, fill=colour)
        draw.text((x + big * 0.65, middle), words, _DARK, font, anchor="lm")
        x += big * 1.3 + font.getlength(words)
    middle, end = strip.height - big // 2, strip.width - big * 0.4
    draw.line((end - bar, middle, end, middle), _DARK, big // 8)
    draw.text((end - bar - big * 0.25, middle), scale, _DARK, font, anchor="rm")
    smooth = strip.resize((width, strip.height // _FINER), Image.Resampling.LANCZOS)
    return np.asarray(smooth, np.uint8)
