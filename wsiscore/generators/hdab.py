"""The explainable baseline: nuclei and their DAB from optical density alone, no weights.

In plain words, once per slide (`Hdab.for_slide`):

1. Measure the slide's two stains and its glass (`Stain.estimate`).
2. Find how brown a nucleus must be to count as positive: the cut that best parts the DAB densities of stained
   places in two (Otsu), within sane limits. Where hardly anything is brown, or all is, such a cut finds only
   noise, and the limit stands.
3. Find how blue a pixel must be to be nucleus: the cut that best parts the hematoxylin, above its local
   background, of the places that are not brown; within limits too. A part of it suffices, as the cut lies
   midway between background and dark nuclei, and pale nuclei count as well.

Then for every tile:

4. Divide hematoxylin and DAB by their cuts, keep the larger, take off the local background, so that a stained
   stroma is no nucleus. What is left above the line is nuclear. Round holes of nuclear size in it are the pale
   middles of vesicular nuclei, and are filled; the ragged gaps between nuclei are not.
5. Measure the depth of each nuclear pixel, its distance to the outside, up to the radius of the smallest
   nucleus. Necks between touching nuclei are shallow, so they come apart.
6. Look in the depth for discs of nuclear size: differences of Gaussians (Lindeberg, Int J Comput Vis 30:79,
   1998) from small to large, scaled so that an ideal lone disc gives 1. A weaker answer within the disc of a
   stronger one is damped: a corner of a large nucleus is not a small nucleus. That is the centre map.
7. Positivity is the mean DAB density of the nuclear pixels around a point, D, against the cut T: D²/(D² + T²).

A pixel's result depends only on the slide's cuts and on its surroundings, hardly beyond the tile margin, so tiles
fit together without seams.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError
from wsiscore.models.contract import Family, Generator, GeneratorSpec
from wsiscore.stain import Stain, disc_mean

__all__ = ["FAMILY", "RULES", "SPEC", "Config", "Hdab", "build"]

RULES = CenterRules(threshold=0.3, radius_um=3.5)
SPEC = GeneratorSpec(
    family="hdab",
    channels=("center", "positive", "negative"),
    mpp=0.5,
    tile_px=512,
    margin_px=32,
    rules=RULES,
)

_SMOOTH_UM = 0.5  # a camera's noise and grain are finer than this
_MEASURE_UM = 0.75  # smoothing before densities are compared to find a cut
_BACKGROUND_UM = 8.0  # the least value this far in each direction is the local background
_BACKGROUND_BLUR_UM = 3.0
_ROUND = 0.6  # share of its bounding box that a round hole fills; a disc: 0.79
_TINY_PX = 8  # holes too small to have a shape
_TRUNCATE = 2.5  # reach of a Gaussian, in its σ
_REACH = 0.8  # of a disc's radius, within which weaker answers are damped
_RIM_SHARE = np.float32(0.2)  # weight of what is a little further off: all there is, in a hollow nucleus
_MOST_OD = 0.8  # darker is simply dark: very dark nuclei must not draw the cuts up
_FAINT_OD = 0.02  # paler is no stain
_NOT_BROWN_OD = 0.15  # places with less DAB tell of hematoxylin
_LEAST_PX = 200  # fewer pixels show no distribution
_MEASURE_STEP = 2  # every n-th pixel of each row and column is measured for the cuts

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Config:
    """What the baseline takes for granted; lengths in micrometres.

    Parameters
    ----------
    blob_um
        Scales of the Gaussians, each about 1/√2 of a radius sought: nuclei from lymphocytes (6 µm across) to
        large tumour nuclei (20 µm).
    larger_counts
        Weight of each next larger disc against the one before; below 1, two touching nuclei stay two.
    depth_um
        Radius of the smallest nucleus: deeper than this is as good as this.
    hole_um
        Width of the largest hole that is the middle of a nucleus.
    around_um
        Radius in which a nucleus's DAB is averaged: the inside of the smallest nucleus.
    nuclear_share
        Part of the hematoxylin or DAB cut, above background, from which a pixel is nuclear.
    hematoxylin_od, dab_od
        Least, usual and largest cut in optical density. The usual one stands where nothing is to be measured;
        for DAB it is QuPath's default for nuclear DAB (0.2).
    """

    blob_um: tuple[float, ...] = (1.5, 2.15, 3.05, 4.4, 6.3)
    larger_counts: float = 0.95
    depth_um: float = 3.0
    hole_um: float = 9.0
    around_um: float = 2.5
    nuclear_share: float = 0.7
    hematoxylin_od: tuple[float, float, float] = (0.05, 0.12, 0.35)
    dab_od: tuple[float, float, float] = (0.15, 0.2, 0.25)


@dataclass(frozen=True, slots=True)
class Hdab:
    """A generator set for one slide, or with published vectors and usual cuts until `for_slide` is called.

    Parameters
    ----------
    spec, config
        As in the model's card.
    stain
        The slide's stains.
    hematoxylin_cut_od, dab_cut_od
        Density from which a pixel is nucleus, and a nucleus positive.
    """

    spec: GeneratorSpec
    config: Config
    stain: Stain
    hematoxylin_cut_od: float
    dab_cut_od: float

    @property
    def device(self) -> str:
        """Where it computes: always on the CPU."""
        return "cpu"

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return nothing: the baseline has no weights."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """All that was found on the slide, JSON-ready."""
        return {
            "stain": self.stain.to_json(),
            "hematoxylin_cut_od": self.hematoxylin_cut_od,
            "dab_cut_od": self.dab_cut_od,
        }

    def for_slide(self, sample: npt.NDArray[np.uint8]) -> Hdab:
        """Return a generator set for the slide of which `sample`, (N, 3, H, W) in 0..255, was read."""
        pictures = np.ascontiguousarray(np.moveaxis(sample, 1, -1))
        stain = Stain.estimate(pictures)
        measured = [self._measure(picture, stain) for picture in pictures]
        hematoxylin, dab = np.concatenate([np.zeros((2, 0), np.float32), *measured], axis=1)
        dab_cut = _cut(dab[np.maximum(hematoxylin, dab) > self.config.hematoxylin_od[0]], self.config.dab_od)
        pale = dab < min(_NOT_BROWN_OD, dab_cut)
        hematoxylin_cut = _cut(hematoxylin[pale & (hematoxylin > _FAINT_OD)], self.config.hematoxylin_od)
        return replace(self, stain=stain, hematoxylin_cut_od=hematoxylin_cut, dab_cut_od=dab_cut)

    def with_settings(self, settings: Mapping[str, Any]) -> Hdab:
        """Return the baseline whose `settings` these were."""
        return replace(
            self,
            stain=Stain.from_json(settings["stain"]),
            hematoxylin_cut_od=float(settings["hematoxylin_cut_od"]),
            dab_cut_od=float(settings["dab_cut_od"]),
        )

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB in 0..255 into (B, 3, H, W) maps in [0, 1]: center, positive, negative."""
        tiles = np.asarray(tiles)
        self.spec.check(tiles)
        maps = np.empty(tiles.shape, np.float32)
        for tile, out in zip(tiles, maps, strict=True):
            hematoxylin, dab = self.stain.separate(np.ascontiguousarray(np.moveaxis(tile, 0, -1)))
            nuclear = self._nuclear(hematoxylin, dab)
            out[0] = self._centers(self._depth(nuclear))
            out[1] = self._positivity(nuclear, dab)
            out[2] = 1 - out[1]
        return maps

    def _measure(self, picture: npt.NDArray[np.uint8], stain: Stain) -> Map:
        """Return hematoxylin and DAB, (2, n), at a grid of points of one picture that are not padding."""
        hematoxylin, dab = stain.separate(picture)
        raised = self._blur(hematoxylin, _MEASURE_UM) - self._background(hematoxylin)
        both = np.stack([np.maximum(raised, 0), self._around(dab)])[:, ::_MEASURE_STEP, ::_MEASURE_STEP]
        inside = picture[::_MEASURE_STEP, ::_MEASURE_STEP].min(axis=-1) < 255
        return np.asarray(both[:, inside], dtype=np.float32)

    def _nuclear(self, hematoxylin: Map, dab: Map) -> Mask:
        """Return which pixels are nuclear, (H, W) of 0 and 1, hollow nuclei still hollow."""
        cuts: Map = np.maximum(hematoxylin / self.hematoxylin_cut_od, dab / self.dab_cut_od)
        raised = self._blur(cuts, _SMOOTH_UM) - self._background(cuts)
        return (raised > self.config.nuclear_share).astype(np.uint8)

    def _depth(self, nuclear: Mask) -> Map:
        """Return how deep each pixel lies within nuclei, holes filled, (H, W) from 0 to 1 at `depth_um`."""
        _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - nuclear, connectivity=4)
        left, top, width, height, area = stats.T
        right, bottom = nuclear.shape[1] - left - width, nuclear.shape[0] - top - height
        whole = np.minimum(np.minimum(left, top), np.minimum(right, bottom)) > 0
        largest = self.config.hole_um / self.spec.mpp
        small = (np.maximum(width, height) < 1.5 * largest) & (area <= math.pi / 4 * largest**2)
        filled = small & whole & ((area > _ROUND * width * height) | (area < _TINY_PX))
        filled[0] = False  # label 0 is the nuclear pixels
        depth = cv2.distanceTransform(nuclear | filled[labels].astype(np.uint8), cv2.DIST_L2, 5)
        return np.asarray(np.minimum(depth * (self.spec.mpp / self.config.depth_um), 1), dtype=np.float32)

    def _centers(self, depth: Map) -> Map:
        """Return how much the neighbourhood of each pixel looks like one disc of nuclear size."""
        scales = self.config.blob_um
        blurred = [self._blur(depth, scale) for scale in scales]
        best, near = np.zeros_like(depth), np.full_like(depth, 1e-3)
        for step, (fine, coarse) in enumerate(itertools.pairwise(blurred)):
            ideal = _ideal_disc(scales[step + 1] / scales[step])
            answer = (fine - coarse) * np.float32(self.config.larger_counts**step / ideal)
            np.maximum(best, answer, out=best)
            radius = _REACH * math.sqrt(2 * scales[step] * scales[step + 1]) / self.spec.mpp
            np.maximum(near, cv2.dilate(answer, _square(radius)), out=near)
        return np.asarray(np.clip(best * best / near, 0, 1), dtype=np.float32)

    def _positivity(self, nuclear: Mask, dab: Map) -> Map:
        """Return the share of DAB evidence, from the mean density of the nuclear pixels around each pixel."""
        weight = nuclear + np.float32(1e-3)
        inside, total = (
            self._around(values) + _RIM_SHARE * self._blur(values, self.config.around_um)
            for values in (weight * dab, weight)
        )
        squared = np.square(inside / total)
        return np.asarray(squared / (squared + self.dab_cut_od**2), dtype=np.float32)

    def _background(self, values: Map) -> Map:
        """Return the least of the surroundings, smoothed."""
        least = cv2.erode(self._blur(values, 2 * _SMOOTH_UM), _square(_BACKGROUND_UM / self.spec.mpp))
        return self._blur(np.asarray(least, dtype=np.float32), _BACKGROUND_BLUR_UM)

    def _around(self, values: Map) -> Map:
        return disc_mean(values, self.config.around_um / self.spec.mpp)

    def _blur(self, values: Map, sigma_um: float) -> Map:
        sigma = sigma_um / self.spec.mpp
        side = 2 * math.ceil(_TRUNCATE * sigma) + 1
        blurred = cv2.GaussianBlur(values, (side, side), sigma, borderType=cv2.BORDER_REFLECT)
        return np.asarray(blurred, dtype=np.float32)


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> Generator:
    """Return the baseline; `device` does not matter to it.

    Raises
    ------
    ModelError
        If weights are given: this family has none.
    """
    del device
    if weights:
        raise ModelError(f"the family hdab has no weights, but {len(weights)} arrays were given; remove them")
    return Hdab(spec, config, Stain.default(), config.hematoxylin_od[1], config.dab_od[1])


def _ideal_disc(ratio: float) -> float:
    """Return the highest answer of a lone disc of height 1 to Gaussians whose scales differ by `ratio`."""
    square = ratio * ratio
    return float(square ** (-1 / (square - 1)) * (1 - 1 / square))


def _square(radius: float) -> Mask:
    side = 2 * round(radius) + 1
    return np.ones((side, side), np.uint8)


def _cut(densities: Map, limits: tuple[float, float, float]) -> float:
    """Return the density that best parts `densities` in two (Otsu 1979), within limits; the usual one if few.

    The cut is sought on square roots: stained nuclei vary more than pale ground.
    """
    least, usual, most = limits
    if len(densities) < _LEAST_PX:
        return usual
    counts, edges = np.histogram(np.sqrt(np.minimum(densities, _MOST_OD)), bins=128)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = below[-1] + counts[-1] - below
    sums = np.cumsum(counts * middles)
    apart = sums[-1] * below - sums[:-1] * (below + above)
    score = np.where((below > 0) & (above > 0), apart**2 / np.maximum(below * above, 1), 0)
    return float(np.clip(middles[int(score.argmax())] ** 2, least, most))


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
)
