"""The explainable baseline: nuclei and their DAB from optical density alone, no weights.

In plain words, once per slide (`for_slide`):

1. Measure the slide's two stains and its glass (`Stain.estimate`).
2. Find how brown a nucleus must be to count as positive: the cut that best parts the DAB densities of stained
   places in two (Otsu), kept within sane limits. Where hardly anything is brown the cut finds only noise, and the
   lower limit stands.
3. Find how blue a pixel must be to be nucleus: the cut that best parts the hematoxylin densities of the places
   that are not brown, within limits too.

Then for every tile:

4. Divide hematoxylin and DAB by their cuts and keep the larger; take off the local background, so that a stained
   stroma is not a nucleus. Where the rest reaches 1 there is nucleus: a soft mask that treats pale and dark nuclei
   alike.
5. Look in the mask for discs of nuclear size: differences of Gaussians (Lindeberg 1998), from small to large,
   scaled so that an ideal lone disc gives 1; the best size wins, larger ones must win clearly. Hollow nuclei
   answer like full ones, because only the average inside counts. That is the centre map.
6. Positivity is the mean DAB density of the nuclear pixels around a point, D, against the cut T: D²/(D² + T²).

A pixel's result depends only on the slide's cuts and on its surroundings within about the tile margin, so tiles
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

from wsiscore.errors import ModelError
from wsiscore.generators import CellRules, Generator, GeneratorSpec
from wsiscore.stain import Stain, disc_mean

__all__ = ["SPEC", "Config", "Hdab", "build"]

SPEC = GeneratorSpec(
    family="hdab",
    channels=("center", "positive", "negative"),
    mpp=0.5,
    tile_px=512,
    margin_px=32,
    rules=CellRules(threshold=0.35, radius_um=3.5),
)

_SMOOTH_UM = 0.5  # a camera's noise and grain are finer than this
_MEASURE_UM = 0.75  # smoothing before a density is compared with others to find a cut
_BACKGROUND_UM = 6.0  # the least value this far in each direction is the local background
_EDGE = 0.2  # softness of the mask's edge, in cuts
_TRUNCATE = 2.5  # reach of a Gaussian, in its σ
_MOST_OD = 0.8  # darker is simply dark: very dark nuclei must not draw the cuts up
_FAINT_OD = 0.02  # paler is no tissue
_LEAST_PX = 200  # fewer pixels show no distribution
_MEASURE_STEP = 2  # every n-th pixel of each row and column is measured for the cuts

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Config:
    """What the baseline takes for granted.

    Parameters
    ----------
    blob_um
        Gaussian scales, each 1/√2 of a radius sought: nuclei from lymphocytes (6 µm across) to large tumour
        nuclei (20 µm).
    larger_counts
        Weight of each next larger scale against the one before; below 1, two touching nuclei stay two.
    hematoxylin_od, dab_od
        Least, usual and largest cut in optical density. The usual one stands where nothing is to be measured;
        for DAB it is QuPath's default for nuclear DAB (0.2).
    around_um
        Radius in which a nucleus's DAB is averaged: the inside of the smallest nucleus.
    """

    blob_um: tuple[float, ...] = (1.5, 2.15, 3.05, 4.4, 6.3)
    larger_counts: float = 0.95
    hematoxylin_od: tuple[float, float, float] = (0.05, 0.12, 0.35)
    dab_od: tuple[float, float, float] = (0.12, 0.2, 0.3)
    around_um: float = 2.5


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
        pale = dab < min(0.15, dab_cut)
        hematoxylin_cut = _cut(hematoxylin[pale & (hematoxylin > _FAINT_OD)], self.config.hematoxylin_od)
        return replace(self, stain=stain, hematoxylin_cut_od=hematoxylin_cut, dab_cut_od=dab_cut)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB in 0..255 into (B, 3, H, W) maps in [0, 1]: center, positive, negative."""
        maps = np.empty(tiles.shape, np.float32)
        for tile, out in zip(tiles, maps, strict=True):
            hematoxylin, dab = self.stain.separate(np.ascontiguousarray(np.moveaxis(tile, 0, -1)))
            mask = self._mask(hematoxylin, dab)
            out[0] = self._centers(mask)
            out[1] = self._positivity(mask, dab)
            out[2] = 1 - out[1]
        return maps

    def _measure(self, picture: npt.NDArray[np.uint8], stain: Stain) -> Map:
        """Return hematoxylin and DAB, (2, n), at a grid of points of one picture that are not padding."""
        hematoxylin, dab = stain.separate(picture)
        both = np.stack([self._blur(hematoxylin, _MEASURE_UM), self._around(dab)])
        both = both[:, ::_MEASURE_STEP, ::_MEASURE_STEP]
        inside = picture[::_MEASURE_STEP, ::_MEASURE_STEP].min(axis=-1) < 255
        return np.asarray(both[:, inside], dtype=np.float32)

    def _mask(self, hematoxylin: Map, dab: Map) -> Map:
        """Return the soft nuclear mask, (H, W) in [0, 1]."""
        cuts: Map = np.maximum(hematoxylin / self.hematoxylin_cut_od, dab / self.dab_cut_od)
        stained = self._blur(cuts, _SMOOTH_UM)
        side = 2 * round(_BACKGROUND_UM / self.spec.mpp) + 1
        least = cv2.erode(self._blur(cuts, 2 * _SMOOTH_UM), np.ones((side, side), np.uint8))
        background = self._blur(np.asarray(least, dtype=np.float32), _BACKGROUND_UM / 2)
        excess = np.subtract(stained, background)
        return np.asarray(1 / (1 + np.exp(np.minimum((1 - excess) / _EDGE, 50))), dtype=np.float32)

    def _centers(self, mask: Map) -> Map:
        """Return how much the neighbourhood of each pixel looks like one disc of nuclear size."""
        scales = self.config.blob_um
        blurred = [self._blur(mask, scale) for scale in scales]
        best = np.zeros_like(mask)
        for step, (fine, coarse) in enumerate(itertools.pairwise(blurred)):
            ideal = _ideal_disc(scales[step + 1] / scales[step])
            np.maximum(best, (fine - coarse) * (self.config.larger_counts**step / ideal), out=best)
        return np.minimum(best, 1)

    def _positivity(self, mask: Map, dab: Map) -> Map:
        """Return the share of DAB evidence, from the mean density of the nuclear pixels around each pixel."""
        weight = mask + 1e-3
        squared = np.square(self._around(weight * dab) / self._around(weight))
        return np.asarray(squared / (squared + self.dab_cut_od**2), dtype=np.float32)

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
