"""New dyes for annotated pictures: hematoxylin and DAB of a random laboratory.

A picture of H-DAB is separated into its dyes and what they leave, and composed again of other dyes. A picture of
another stain gives the texture of the hematoxylin; DAB is added to a random part of its outlined nuclei, whose class
is then known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import KDTree

from wsiscore.evaluation.detection.truth import Kind
from wsiscore.stain import Stain, disc_mean, optical_density
from wsiscore.synthetic.appearance import dye
from wsiscore.synthetic.ground import smooth_noise
from wsiscore.training.known import UNKNOWN_KIND, Points, cell_targets, point_targets, rotation, warped
from wsiscore.training.targets import OTHERS
from wsiscore.training.truth_files import AnnotatedPicture

__all__ = ["Laboratory", "Outlined", "Stained", "outlined_of", "stained_of"]

_SURE_NEGATIVE, _SURE_POSITIVE = 0.08, 0.16  # DAB OD at a nucleus over the background; between them the class is open
_ADDED_DOUBT = (0.08, 0.15)  # the same for DAB that was added
_DISC_UM = 2.0  # over which the DAB at a point is averaged
_POINT_UM = (1.6, 3.0)  # range of the radius of a point's disc
_POINT_FRACTION = 0.48  # of the distance to the next point
_PALE = 0.30  # dye of ground, relative to a nucleus, that may be an unmarked nucleus
_UNMARKED = 0.35  # the same where nuclei were left out
_LEAST_DYE = 0.05

Picture = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Crop = tuple[Picture, Picture, Picture]
"""(S, S, 3) RGB, (4, S, S) maps and (4, S, S) weights."""


class Laboratory:
    """Dyes, glass and habits of one laboratory, drawn from a random generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        warm = rng.choice([0.0, 0.03, 0.12], p=[0.55, 0.27, 0.18])
        level = rng.uniform(225, 253) - (rng.uniform(0, 45) if rng.random() < 0.3 else 0)
        glass = level * (1 + rng.normal(0, 0.006, 3) + warm * np.array([0.03, 0, -0.9]))
        self.glass = np.clip(glass, 0, 254).astype(np.float32)
        self.hematoxylin = np.array(dye(rng, (0.79, 0.55, 0.30), (0.60, 0.74, 0.30), rng.beta(0.7, 1.0)), np.float32)
        self.dab = np.array(dye(rng, (0.23, 0.55, 0.80), (0.42, 0.62, 0.66), rng.beta(1.2, 2.2)), np.float32)
        self.nuclear_od = float(np.exp(rng.uniform(np.log(0.10), np.log(0.75))))
        self.spread = float(rng.uniform(0.05, 0.35))
        self.power = float(np.exp(rng.normal(0, 0.25)))
        self.ground = float(rng.choice([rng.uniform(0.1, 0.6), rng.uniform(0.6, 1.2)]))
        self.hollow = float(rng.uniform(0.15, 0.65)) if rng.random() < 0.3 else 0.0
        self.stray = float(rng.uniform(0, 0.06))
        self.background_od = float(rng.uniform(0, 0.02)) + (float(rng.uniform(0, 0.08)) if rng.random() < 0.3 else 0)
        self.blush_od = float(rng.uniform(0, 0.15)) if rng.random() < 0.25 else 0.0
        self.dab_od = float(np.exp(rng.uniform(np.log(0.45), np.log(1.7))))
        self.dab_spread = float(rng.uniform(0.15, 0.5))
        self.weak = float(rng.uniform(0.05, 0.6)) if rng.random() < 0.6 else 0.05
        self.faint_od = float(rng.uniform(0.0, 0.035)) + (float(rng.uniform(0.02, 0.07)) if rng.random() < 0.4 else 0)
        self.patchy = float(rng.uniform(0.05, 0.5))
        self.index = float(rng.beta(0.6, 1.1))
        self.pale = float(rng.uniform(0.05, 0.5)) if rng.random() < 0.5 else 0.0
        self.kept = (0.1, 0.9) if rng.random() < 0.5 else (0.5, 1.1)

    def expose(self, od: Plane) -> Picture:
        """Return the picture, (S, S, 3) in 0..255, of optical densities."""
        light = np.float32(self.stray) + np.float32(1 - self.stray) * np.power(np.float32(10), -od)
        picture: Picture = np.clip(light * self.glass + 0.5, 0, 255).astype(np.uint8)
        return picture


@dataclass(frozen=True, slots=True)
class Outlined:
    """An outlined picture of another stain, as the amount of one dye.

    Parameters
    ----------
    dye
        (H, W): 1 in the median of its nuclei, 0 on its ground.
    labels
        (H, W), 0 outside, i + 1 on nucleus i.
    other
        (N,), as `AnnotatedPicture.other`.
    known
        (H, W) in 0..1: where the annotations apply.
    mpp, sized, complete
        Its resolution, whether that is known, and whether every nucleus is outlined.
    median_um
        Median diameter of its nuclei.
    """

    dye: Plane
    labels: npt.NDArray[np.int16]
    other: npt.NDArray[np.int8]
    known: Picture
    mpp: float
    sized: bool
    complete: bool
    median_um: float

    def crop(self, rng: np.random.Generator, laboratory: Laboratory, side: int, mpp: float, typical_um: float) -> Crop:
        """Return a random crop in the dyes of a laboratory; without a known size its nuclei become `typical_um`."""
        spread = 0.15 if self.sized else 0.1
        scale = (1.0 if self.sized else typical_um / self.median_um) * self.mpp / mpp * np.exp(rng.normal(0, spread))
        matrix = rotation(rng, self.dye.shape, side, float(scale))
        texture = np.clip(warped(self.dye, matrix, side), 0, 3)
        labels = warped(self.labels, matrix, side, values=False).astype(np.int32)
        there = warped(self.known, matrix, side, values=False)
        nucleus = labels > 0
        positive, amount, kept = _stained_nuclei(rng, laboratory, int(self.labels.max()) + 1)
        rgb = _composed(rng, laboratory, texture, labels, amount, kept, mpp)
        kinds = np.zeros(len(positive), np.int32)
        kinds[1:] = np.array([UNKNOWN_KIND, 0, OTHERS])[self.other + 1][: len(kinds) - 1]
        number = labels + kinds[labels] * nucleus
        cells = np.where(positive[labels], number, -number)
        near = cv2.dilate(nucleus.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        pale = ~near & (cv2.GaussianBlur(texture, (0, 0), 1.5) > _PALE)
        unknown = there == 0
        if not self.complete:
            unknown |= ~nucleus & (cv2.GaussianBlur(texture, (0, 0), 1.0) > _UNMARKED)
        doubtful = (amount > _ADDED_DOUBT[0]) & (amount < _ADDED_DOUBT[1])
        return (rgb, *cell_targets(cells, doubtful[labels] & nucleus, unknown, pale))


def outlined_of(picture: AnnotatedPicture) -> Outlined | None:
    """Return an outlined picture as the amount of its dye; None if its nuclei hardly differ from the ground."""
    labels = picture.labels
    if labels is None or not labels.any() or labels.all():
        return None
    red = np.maximum(picture.rgb[..., 0], 1).astype(np.float32)
    ground = labels == 0
    amount = np.maximum(-np.log10(red / np.percentile(red[ground], 90)), -0.05)
    typical = float(np.median(amount[~ground]))
    if typical < _LEAST_DYE:
        return None
    areas = np.bincount(labels.ravel())[1:]
    areas = areas[areas > 0]
    return Outlined(
        np.clip(amount / typical, -0.1, 3).astype(np.float32),
        labels.astype(np.int16),
        picture.other,
        picture.inside.astype(np.uint8),
        picture.mpp,
        picture.sized,
        picture.unmarked == "ground",
        float(np.median(np.sqrt(areas * 4 / np.pi))) * picture.mpp,
    )


def _stained_nuclei(rng: np.random.Generator, look: Laboratory, n: int) -> tuple[Mask, Plane, Plane]:
    """Return by number of a nucleus: whether it is positive, its DAB, and the fraction of hematoxylin it keeps."""
    beta = (0.6, 1.1) if rng.random() < 0.4 else (4 * look.index + 0.05, 4 * (1 - look.index) + 0.05)
    positive = rng.random(n) < np.clip(rng.beta(*beta), 0, 1)
    dab = np.maximum(look.dab_od * np.exp(rng.normal(0, look.dab_spread, n)), 0.22)
    weak = rng.random(n) < look.weak
    dab[weak] = rng.uniform(0.12, 0.5, weak.sum())
    faint = np.minimum(np.abs(rng.normal(0, look.faint_od, n)) + 0.4 * look.faint_od, 0.11)
    amount = np.where(positive, dab, faint).astype(np.float32)
    kept = np.where(positive, rng.uniform(*look.kept, n), np.exp(rng.normal(0, look.spread, n))).astype(np.float32)
    pale = rng.random(n) < look.pale
    kept[pale] *= rng.uniform(0.2, 0.6, pale.sum())
    amount[0] = 0
    return positive, amount, kept


def _composed(
    rng: np.random.Generator,
    look: Laboratory,
    texture: Plane,
    labels: npt.NDArray[np.int32],
    amount: Plane,
    kept: Plane,
    mpp: float,
) -> Picture:
    """Return the picture of a texture of dye with DAB in its nuclei."""
    nucleus = (labels > 0).astype(np.float32)
    soft = max(0.5, 0.35 / mpp)
    brown = cv2.GaussianBlur(amount[labels], (0, 0), soft)
    keep = cv2.GaussianBlur(np.where(labels > 0, kept[labels], np.float32(1)), (0, 0), soft)
    ground = cv2.GaussianBlur(nucleus, (0, 0), 0.7)
    h = np.power(texture, np.float32(look.power)) * np.float32(look.nuclear_od)
    h *= keep * (look.ground + (1 - look.ground) * ground)
    if look.hollow:
        middle = np.clip((cv2.GaussianBlur(nucleus, (0, 0), 1.6) - 0.6) * 2.5, 0, 1)
        h *= 1 - np.float32(look.hollow) * middle
    patches = 0.6 * smooth_noise(rng, labels.shape, 1.2 / mpp) + 0.5 * smooth_noise(rng, labels.shape, 3 / mpp)
    d = brown * np.exp(look.patchy * patches) * np.clip(0.35 + 0.65 * texture, 0.3, 1.6)
    d += np.float32(look.background_od) * np.clip(0.5 + 0.5 * texture, 0.3, 1.5)
    if look.blush_od:
        cloud = np.clip(smooth_noise(rng, labels.shape, 14 / mpp), 0, 2)
        d += np.float32(look.blush_od) * cloud * cv2.GaussianBlur(nucleus, (0, 0), 6) * (1 - 0.7 * ground)
    return look.expose(h[..., None] * look.hematoxylin + d[..., None] * look.dab)


@dataclass(frozen=True, slots=True)
class Stained:
    """An annotated picture of H-DAB, as its two dyes and what they leave.

    Parameters
    ----------
    h, d, rest
        (H, W), (H, W) and (H, W, 3): hematoxylin, DAB and the channels' remaining optical density.
    dab_od
        (N,): DAB at each nucleus, the picture's background taken off.
    radius_px
        (N,): radius of the disc of a point.
    picture
        What was read.
    """

    h: Plane
    d: Plane
    rest: Plane
    dab_od: npt.NDArray[np.float64]
    radius_px: npt.NDArray[np.float64]
    picture: AnnotatedPicture

    def crop(
        self, rng: np.random.Generator, laboratory: Laboratory, gains: tuple[float, float], side: int, mpp: float,
        zoom: float,
    ) -> Crop:  # fmt: skip
        """Return a random crop in the dyes of a laboratory; `gains` multiply its hematoxylin and its DAB."""
        own = self.picture
        scale = own.mpp / mpp * zoom * float(np.exp(rng.normal(0, 0.05)))
        matrix = rotation(rng, self.h.shape, side, scale)
        h, d, rest = (warped(at, matrix, side) for at in (self.h, self.d, self.rest))
        there = warped(own.inside.astype(np.uint8), matrix, side, values=False)
        h, d = h * np.float32(gains[0]), d * np.float32(gains[1])
        rgb = laboratory.expose(h[..., None] * laboratory.hematoxylin + d[..., None] * laboratory.dab + rest)
        dab_od = self.dab_od * gains[1]
        open_ = (own.kind == Kind.UNKNOWN) | (own.kind == Kind.EXCLUDED)
        positive = np.where(open_, dab_od > _SURE_POSITIVE, own.kind == Kind.POSITIVE)
        negative = np.where(open_, dab_od < _SURE_NEGATIVE, own.kind == Kind.NEGATIVE)
        total = np.asarray(cv2.GaussianBlur(h + d, (0, 0), 1.0), np.float32)
        if own.labels is None:
            xy = (own.xy_px - 0.5 - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
            points = Points(xy, self.radius_px * scale, positive, negative, own.other).near(side)
            maps, weights = point_targets(points, total, mpp, scale / 0.7 * 0.7, own.unmarked == "ground")
        else:
            labels = warped(own.labels.astype(np.int16), matrix, side, values=False).astype(np.int32)
            maps, weights = _label_targets(labels, positive, negative, own, total)
        weights[:, there == 0] = 0
        return rgb, maps, weights


def _label_targets(
    labels: npt.NDArray[np.int32], positive: Mask, negative: Mask, own: AnnotatedPicture, total: Plane
) -> tuple[Picture, Picture]:
    nucleus = labels > 0
    first = [False]
    number = labels + np.concatenate([[0], np.array([UNKNOWN_KIND, 0, OTHERS])[own.other + 1]])[labels] * nucleus
    cells = np.where(np.concatenate([first, positive])[labels], number, -number)
    doubtful = nucleus & ~np.concatenate([first, positive | negative])[labels]
    unknown = None if own.unmarked == "ground" else ~nucleus & (total > _LEAST_DYE * 3.6)
    return cell_targets(cells, doubtful, unknown, None)


def stained_of(picture: AnnotatedPicture, stain: Stain) -> Stained:
    """Return a picture of H-DAB as its dyes, by the stain of its slide or group."""
    od = optical_density(picture.rgb, stain.white)
    h, d = stain.separate(picture.rgb)
    rest = (
        od - h[..., None] * np.asarray(stain.hematoxylin, np.float32) - d[..., None] * np.asarray(stain.dab, np.float32)
    )
    at = disc_mean(np.ascontiguousarray(d), _DISC_UM / picture.mpp)
    xy = picture.xy_px
    x, y = np.clip(xy.round().astype(int), 0, [d.shape[1] - 1, d.shape[0] - 1]).T
    dab_od = at[y, x] - float(np.percentile(at, 5))
    apart = KDTree(xy).query(xy, k=2)[0][:, 1] if len(xy) > 1 else np.full(len(xy), np.inf)
    radius_um = np.clip(_POINT_FRACTION * apart * picture.mpp, *_POINT_UM)
    return Stained(
        np.asarray(h, np.float32),
        np.asarray(d, np.float32),
        np.asarray(rest, np.float32),
        np.asarray(dab_od, np.float64),
        radius_um / picture.mpp,
        picture,
    )
