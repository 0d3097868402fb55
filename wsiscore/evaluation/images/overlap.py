"""How well predicted nuclei cover the true ones: pixels, whole nuclei, and what follows for the index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndi

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.masks import arrays_of, check_colours, instances, kinds_of, pixels_of
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.evaluation.images.pairs import check_size, is_mosaic
from wsiscore.evaluation.tables import mean
from wsiscore.mosaic import Mosaic
from wsiscore.score import Tally

__all__ = ["MASKS", "OVERLAPS", "Nuclei", "aji", "compare_nuclei", "from_colours", "overlaps", "read_nuclei"]

MASKS = (".npy", ".png", ".tif", ".tiff")
"""Endings of files that are taken as masks."""
OVERLAPS = ("pixel_accuracy", "dice", "iou", "aji")
"""Names of the measures of a class."""

_CLASSED = 120  # DeepLIIF's thresholds, on levels of 0..255
_BOUNDARY = 80
_SPECK_PX = 20
_AROUND = np.ones((3, 3), np.bool_)

Labels = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Nuclei:
    """Nuclei of one picture as numbered instances.

    Parameters
    ----------
    positive, negative
        (H, W): 0 where none is, else the number of the nucleus; no pixel is in both.
    classed
        Whether the class of the nuclei is known; if not, all are in `positive`.
    """

    positive: Labels
    negative: Labels
    classed: bool = True

    @property
    def every(self) -> Labels:
        """All nuclei in one map."""
        return np.where(self.negative > 0, self.negative + self.positive.max(initial=0), self.positive)

    @property
    def tally(self) -> Tally:
        """How many there are of each class."""
        return Tally(*(len(np.unique(labels[labels > 0])) for labels in (self.positive, self.negative)))


def read_nuclei(path: Path, types: Mapping[int, Kind]) -> Nuclei:
    """Read the nuclei of a picture.

    Parameters
    ----------
    path
        A mask of classes (TIFF or PNG in colour), a map of numbered instances (TIFF or PNG in grey, or ``.npy``), or
        a mosaic with the maps positive, negative and boundary.
    types
        What the numbers of the type map of a ``.npy`` mean; instances of another number are left out. Without it the
        classes are unknown.

    Raises
    ------
    TruthError
        If it is none of these.
    MosaicError
        If a folder is no mosaic.
    """
    if is_mosaic(path):
        return from_colours(_maps(path))
    if path.suffix.casefold() == ".npy":
        labels, type_map = arrays_of(path)
    else:
        pixels = pixels_of(path)
        if pixels.ndim == 3:
            check_colours(pixels[..., :3], path)
            return from_colours(pixels[..., :3])
        labels, type_map = pixels, None
    y_px, x_px, which, areas = instances(labels, path)
    classed = bool(type_map is not None and types)
    kinds = kinds_of(which, len(areas), type_map[y_px, x_px] if type_map is not None else None, types)
    maps = np.zeros((2, *labels.shape), np.int64)
    for numbered, wanted in zip(maps, (Kind.POSITIVE if classed else Kind.UNKNOWN, Kind.NEGATIVE), strict=True):
        own = kinds[which] == wanted
        numbered[y_px[own], x_px[own]] = which[own] + 1
    return Nuclei(maps[0], maps[1], classed)


def _maps(path: Path) -> npt.NDArray[np.uint8]:
    """Return a mosaic's maps as the colours of a mask."""
    mosaic = Mosaic.open(path)
    wanted = ("positive", "boundary", "negative")
    if missing := [name for name in wanted if name not in mosaic.channels]:
        raise TruthError(f"{path} has no map {' or '.join(missing)}; wanted a mosaic of whole cells, or masks")
    if tiles := mosaic.missing():
        raise TruthError(f"{path} lacks {tiles} tiles; run the same `wsiscore infer` again to finish it")
    check_size(path, mosaic.grid.width_px, mosaic.grid.height_px)
    maps = mosaic.read(0, 0, mosaic.grid.width_px, mosaic.grid.height_px)
    chosen = np.stack([maps[mosaic.channels.index(name)] for name in wanted], axis=-1)
    scale = 1 if maps.dtype == np.uint8 else 255
    return np.rint(chosen.astype(np.float32) * scale).astype(np.uint8)


def from_colours(rgb: npt.NDArray[np.uint8]) -> Nuclei:
    """Find the nuclei in a mask of classes, sharp or as a generator paints it.

    A pixel is nuclear where red + blue > 120 and green <= 80, positive if it is as red as blue or redder, as in
    DeepLIIF's program. The nuclei of a class are its connected pieces, across corners too, with their holes filled;
    those under 20 px are specks.

    Parameters
    ----------
    rgb
        (H, W, 3) in 0..255: red positive, blue negative, green between nuclei.
    """
    red, green, blue = np.moveaxis(rgb.astype(np.int16), -1, 0)
    nuclear = (red + blue > _CLASSED) & (green <= _BOUNDARY)
    positive, negative = nuclear & (red >= blue), nuclear & (red < blue)
    return Nuclei(_pieces(positive, negative), _pieces(negative, positive))


def _pieces(own: Mask, other: Mask) -> Labels:
    labels, count = ndi.label(ndi.binary_fill_holes(own) & ~other, _AROUND)
    kept = np.bincount(labels.ravel(), minlength=count + 1) >= _SPECK_PX
    kept[0] = False
    return np.where(kept[labels], labels, 0).astype(np.int64)


def compare_nuclei(found: Nuclei, true: Nuclei) -> dict[str, float]:
    """Compare the nuclei predicted in a picture with the true ones.

    Returns
    -------
    dict
        The measures of `overlaps` as means of both classes, then for each class, and the index of the true and of the
        found nuclei with their difference in points: DeepLIIF's "IHC quantification difference". Where one side has
        no classes, the measures are of all nuclei together and the rest is nan. A measure that is undefined for one
        class is that of the other.
    """
    if found.classed and true.classed:
        by_class = {
            "positive": overlaps(found.positive, true.positive),
            "negative": overlaps(found.negative, true.negative),
        }
        both = {name: mean(measures[name] for measures in by_class.values()) for name in OVERLAPS}
        indices = true.tally.ki67_index, found.tally.ki67_index
    else:
        both = overlaps(found.every, true.every)
        by_class = {of: dict.fromkeys(OVERLAPS, math.nan) for of in ("positive", "negative")}
        indices = math.nan, math.nan
    return {
        **both,
        **{f"{of}_{name}": value for of, measures in by_class.items() for name, value in measures.items()},
        "true_index": indices[0],
        "found_index": indices[1],
        "index_error": abs(indices[0] - indices[1]),
    }


def overlaps(found: Labels, true: Labels) -> dict[str, float]:
    """Measure the nuclei of one class; nan where there is none on either side.

    Source: Ghahremani et al., DeepLIIF, section "Results". ``pixel_accuracy`` is (TP + TN) / all pixels: the paper's
    text has TP / (TP + FP + FN), which is its IoU, but its numbers (94 % beside an IoU of 53 %) are those of this
    one. ``dice`` is 2 TP / (2 TP + FP + FN), ``iou`` TP / (TP + FP + FN), ``aji`` as in `aji`.

    Parameters
    ----------
    found, true
        (H, W) numbered nuclei, 0 where none is.
    """
    predicted, real = found > 0, true > 0
    tp, fp, fn = (int(which.sum()) for which in (predicted & real, predicted & ~real, ~predicted & real))
    return {
        "pixel_accuracy": 1 - (fp + fn) / real.size,
        "dice": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else math.nan,
        "iou": tp / (tp + fp + fn) if tp + fp + fn else math.nan,
        "aji": aji(found, true),
    }


def aji(found: Labels, true: Labels) -> float:
    """Return the aggregated Jaccard index, in [0, 1]; nan where there is no nucleus on either side.

    Each true nucleus takes the predicted one with which it has the greatest Jaccard index; the index is the sum of
    the intersections over the sum of the unions and of the predicted nuclei that none took. Source: Kumar et al., IEEE
    TMI 36:1550, 2017, algorithm 1. Of equal ones the larger intersection wins, then the first in reading order, so
    that how nuclei are numbered does not matter.

    Parameters
    ----------
    found, true
        (H, W) numbered nuclei, 0 where none is.
    """
    found, true = _in_reading_order(found), _in_reading_order(true)
    area_found, area_true = np.bincount(found.ravel()), np.bincount(true.ravel())
    touching = (found > 0) & (true > 0)
    pairs, shared = np.unique(true[touching] * len(area_found) + found[touching], return_counts=True)
    of_true, of_found = np.divmod(pairs, len(area_found))
    union = area_true[of_true] + area_found[of_found] - shared
    order = np.lexsort((of_found, -shared, -shared / union, of_true))
    taken, best = np.unique(of_true[order], return_index=True)
    best = order[best]
    missed = area_true[1:].sum() - area_true[taken].sum()
    unused = area_found[1:].sum() - area_found[np.unique(of_found[best])].sum()
    whole = union[best].sum() + missed + unused
    return float(shared[best].sum() / whole) if whole else math.nan


def _in_reading_order(labels: Labels) -> Labels:
    """Return the nuclei numbered 1, 2, … by their first pixel."""
    numbers, first, which = np.unique(labels, return_index=True, return_inverse=True)
    inside = numbers > 0
    new = np.zeros(len(numbers), np.int64)
    new[np.flatnonzero(inside)[np.argsort(first[inside])]] = np.arange(1, int(inside.sum()) + 1)
    return new[which].reshape(labels.shape)
