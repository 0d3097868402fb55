"""Overlap of predicted and true nuclei: by pixel, by nucleus, and the error of the index."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection.masks import arrays_of, check_colours, instances, kinds_of, label_classes, pixels_of
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.evaluation.images.pairs import check_size, is_mosaic
from wsiscore.evaluation.tables import mean
from wsiscore.mosaic import Mosaic
from wsiscore.score import Tally

__all__ = ["MASKS", "OVERLAPS", "NucleusMasks", "aji", "compare_nuclei", "overlaps", "read_nucleus_masks"]

MASKS = (".npy", ".png", ".tif", ".tiff")
"""Endings of mask files."""
OVERLAPS = ("pixel_accuracy", "dice", "iou", "aji")
"""Names of the measures of a class."""

_LEAST_PX = 20  # smaller components are not nuclei; DeepLIIF's, at any resolution

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NucleusMasks:
    """The nuclei of one picture as numbered instances.

    Parameters
    ----------
    positive, negative
        (H, W): 0 outside, else the number of the nucleus; no pixel is in both.
    classed
        Whether the classes are known; if not, all nuclei are in `positive`.
    """

    positive: Labels
    negative: Labels
    classed: bool = True

    @classmethod
    def of_classes(cls, rgb: npt.NDArray[np.uint8]) -> Self:
        """Return the nuclei of at least 20 px in a class mask, (H, W, 3); see `masks.label_classes`."""
        return cls(*label_classes(rgb, _LEAST_PX))

    @property
    def every(self) -> Labels:
        """All nuclei in one map."""
        return np.where(self.negative > 0, self.negative + self.positive.max(initial=0), self.positive)

    @property
    def tally(self) -> Tally:
        """Number of nuclei of each class."""
        return Tally(*(len(np.unique(labels[labels > 0])) for labels in (self.positive, self.negative)))


def read_nucleus_masks(path: Path, types: Mapping[int, Kind]) -> NucleusMasks:
    """Read the nuclei of a picture.

    Parameters
    ----------
    path
        A class mask (TIFF or PNG in colour), a map of numbered instances (TIFF or PNG in grey, or ``.npy``), or a
        mosaic with the maps positive, negative and boundary.
    types
        Class of each number of the type map of a ``.npy``; instances of other numbers are left out. If empty, the
        classes are unknown.

    Raises
    ------
    TruthError
        If the file has another format.
    MosaicError
        If a folder is not a mosaic.
    """
    if is_mosaic(path):
        return NucleusMasks.of_classes(_maps(path))
    if path.suffix.casefold() == ".npy":
        labels, type_map = arrays_of(path)
    else:
        pixels = pixels_of(path)
        if pixels.ndim == 3:
            check_colours(pixels[..., :3], path)
            return NucleusMasks.of_classes(pixels[..., :3])
        labels, type_map = pixels, None
    y_px, x_px, which, areas = instances(labels, path)
    classed = bool(type_map is not None and types)
    kinds = kinds_of(which, len(areas), type_map[y_px, x_px] if type_map is not None else None, types)
    maps = np.zeros((2, *labels.shape), np.int64)
    for numbered, wanted in zip(maps, (Kind.POSITIVE if classed else Kind.UNKNOWN, Kind.NEGATIVE), strict=True):
        own = kinds[which] == wanted
        numbered[y_px[own], x_px[own]] = which[own] + 1
    return NucleusMasks(maps[0], maps[1], classed)


def _maps(path: Path) -> npt.NDArray[np.uint8]:
    """Return the maps of a mosaic as a class mask in colour."""
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


def compare_nuclei(found: NucleusMasks, true: NucleusMasks) -> dict[str, float]:
    """Compare the nuclei predicted in a picture with the true ones.

    Returns
    -------
    dict
        The measures of `overlaps` as means of both classes, then by class; then the index of the true and of the found
        nuclei, and their difference in points (DeepLIIF's "IHC quantification difference"). If one side has no classes,
        the measures are of all nuclei together and the others are nan. A mean leaves out a class for which the measure
        is undefined.
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
    """Measure the nuclei of one class; undefined measures are nan.

    Source: Ghahremani et al., DeepLIIF, section "Results". ``pixel_accuracy`` is (TP + TN) / all pixels: the paper's
    text has TP / (TP + FP + FN), which is its IoU, but its numbers (94 % beside an IoU of 53 %) are those of this
    one. ``dice`` is 2 TP / (2 TP + FP + FN), ``iou`` TP / (TP + FP + FN), ``aji`` as in `aji`.

    Parameters
    ----------
    found, true
        (H, W) numbered nuclei, 0 outside.
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
    """Return the aggregated Jaccard index, in [0, 1]; nan without any nucleus.

    Each true nucleus is paired with the predicted one of the greatest Jaccard index. The result is the sum of the
    intersections over the sum of the unions and of the areas of unpaired predicted nuclei. Source: Kumar et al., IEEE
    TMI 36:1550, 2017, algorithm 1. Ties go to the larger intersection, then to the first in reading order, so the
    result does not depend on the numbering.

    Parameters
    ----------
    found, true
        (H, W) numbered nuclei, 0 outside.
    """
    found, true = _in_reading_order(found), _in_reading_order(true)
    area_found, area_true = np.bincount(found.ravel()), np.bincount(true.ravel())
    touching = (found > 0) & (true > 0)
    pairs, common = np.unique(true[touching] * len(area_found) + found[touching], return_counts=True)
    of_true, of_found = np.divmod(pairs, len(area_found))
    union = area_true[of_true] + area_found[of_found] - common
    order = np.lexsort((of_found, -common, -common / union, of_true))
    taken, best = np.unique(of_true[order], return_index=True)
    best = order[best]
    missed = area_true[1:].sum() - area_true[taken].sum()
    unused = area_found[1:].sum() - area_found[np.unique(of_found[best])].sum()
    whole = union[best].sum() + missed + unused
    return float(common[best].sum() / whole) if whole else math.nan


def _in_reading_order(labels: Labels) -> Labels:
    """Return the labels renumbered 1, 2, … by the first pixel of each nucleus."""
    numbers, first, which = np.unique(labels, return_index=True, return_inverse=True)
    inside = numbers > 0
    new = np.zeros(len(numbers), np.int64)
    new[np.flatnonzero(inside)[np.argsort(first[inside])]] = np.arange(1, int(inside.sum()) + 1)
    return new[which].reshape(labels.shape)
