"""Nuclei: position, shape, stain and drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.ground import Flow, Layout, Plane, smooth_noise

__all__ = ["KINDS", "Nuclei", "Traits", "draw_nuclei", "place_nuclei"]

KINDS = ("tumour", "stroma", "lymphocyte")
_TUMOUR, _STROMA, _LYMPHOCYTE = range(3)
_CHUNK_PX = 100_000  # pixels of nuclei drawn at once
_BANK_PX = 256  # side of the noise image; each nucleus takes a random patch of it

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Nuclei:
    """Nuclei as columns of one length.

    Parameters
    ----------
    x, y
        Centre in pixels.
    kind
        Index into `KINDS`.
    positive
        Whether the nucleus is stained with DAB.
    n_inside
        The first so many have their centre in the picture.
    length_um, width_um, angle
        Half axes, and the direction of the longer one in radians.
    """

    x: Column
    y: Column
    kind: npt.NDArray[np.int8]
    positive: npt.NDArray[np.bool_]
    n_inside: int
    length_um: Column
    width_um: Column
    angle: Column


def place_nuclei(
    rng: np.random.Generator,
    shape: tuple[int, int],
    mpp: float,
    appearance: Appearance,
    layout: Layout,
    flow: Flow,
    index: float,
    margin_um: float,
) -> Nuclei:
    """Sample nuclei in a field without a margin of `margin_um`; a negative one is added outside the field.

    Tumour and stroma follow the layout. Crowding limits the distance of two centres.
    """
    height, width = shape
    margin = margin_um / mpp
    span = np.array([height - 2 * margin, width - 2 * margin])
    area_mm2 = float(np.prod(np.maximum(span, 0))) * mpp * mpp / 1e6
    n = rng.poisson(area_mm2 * max(appearance.density_mm2, appearance.stroma_mm2 + appearance.lymphocytes_mm2) * 2.5)
    y, x = (rng.uniform(0, 1, (n, 2)) * span + margin).T
    row, column = _pixel(y, height), _pixel(x, width)
    tumour = rng.random(n) < layout.tumour[row, column]
    patch = smooth_noise(rng, shape, 60 / mpp)[row, column]
    small = (
        appearance.lymphocytes_mm2
        * np.exp(patch)
        / (appearance.lymphocytes_mm2 * np.exp(patch) + appearance.stroma_mm2 + 1)
    )
    intruder = tumour & (rng.random(n) < 0.01 + 0.03 * (appearance.lymphocytes_mm2 > 500))
    kind = np.where(tumour & ~intruder, _TUMOUR, np.where(rng.random(n) < small, _LYMPHOCYTE, _STROMA)).astype(np.int8)
    wanted = np.array([appearance.density_mm2, appearance.stroma_mm2, appearance.lymphocytes_mm2])[kind]
    thin = smooth_noise(rng, shape, 35 / mpp)[row, column]
    rate = wanted / wanted.max(initial=1) * np.where(kind == _TUMOUR, np.clip(1 + 0.3 * thin, 0.3, 1), 1)
    keep = (rng.random(n) < rate) & (rng.random(n) > 1.5 * layout.clear[row, column])
    y, x, row, column, kind = y[keep], x[keep], row[keep], column[keep], kind[keep]
    length, wide = _axes(rng, appearance, kind)
    apart = _far_apart(
        np.stack([x, y], 1) * mpp, np.sqrt(length * wide) * 0.4 + wide * 0.6, 1 - 0.5 * appearance.crowding
    )
    limit = _thin_out(rng, apart, kind, appearance, area_mm2, layout)
    order = np.flatnonzero(limit)
    inside = (y[order] >= 0) & (y[order] < height) & (x[order] >= 0) & (x[order] < width)
    order = np.concatenate([order[inside], order[~inside]])
    row, column, kind = row[order], column[order], kind[order]
    lean = np.where(kind == _TUMOUR, min(1.0, 0.25 / max(appearance.elongation, 0.05)), 0.2)
    angle = flow.angle(row, column) + rng.normal(0, 1, len(order)) * lean
    cluster = smooth_noise(rng, shape, 70 / mpp)[row, column]
    positive = _positive(rng, kind, cluster, index, int(inside.sum()))
    return Nuclei(x[order], y[order], kind, positive, int(inside.sum()), length[order], wide[order], angle)


def _pixel(values: Column, side: int) -> npt.NDArray[np.intp]:
    return np.clip(np.floor(values), 0, side - 1).astype(np.intp)


def _axes(rng: np.random.Generator, appearance: Appearance, kind: npt.NDArray[np.int8]) -> tuple[Column, Column]:
    """Return half length and half width in µm."""
    n = len(kind)
    radius = appearance.diameter_um / 2 * np.exp(rng.normal(0, appearance.diameter_spread, n))
    giant = rng.random(n) < 0.03
    radius[giant] *= rng.uniform(1.2, 1.6, giant.sum())
    ratio = 1 + appearance.elongation * rng.gamma(2.0, 0.5, n)
    stroma = kind == _STROMA
    radius[stroma] = rng.uniform(2.0, 4.2, stroma.sum())
    ratio[stroma] = 1.1 + appearance.spindle * rng.gamma(2.0, 0.5, stroma.sum()).clip(0, 3)
    round_ = kind == _LYMPHOCYTE
    radius[round_] = rng.normal(3.1, 0.3, round_.sum()).clip(2.4, 4)
    ratio[round_] = rng.uniform(1, 1.25, round_.sum())
    return radius * np.sqrt(ratio), radius / np.sqrt(ratio)


def _far_apart(points_um: Column, radius_um: Column, factor: float) -> npt.NDArray[np.bool_]:
    """Mark the points to keep: each kept point removes all later ones nearer than `factor` times both radii.

    The result equals that of a loop over the points in order; it takes a few vectorised rounds over all pairs.
    """
    n = len(points_um)
    state = np.zeros(n, np.int8)  # 0 undecided, 1 kept, -1 removed
    if n < 2:
        return np.ones(n, bool)
    pairs = cKDTree(points_um).query_pairs(2 * factor * float(radius_um.max()), output_type="ndarray")
    first, second = pairs.min(1), pairs.max(1)
    gap = np.hypot(*(points_um[first] - points_um[second]).T)
    near = gap < factor * (radius_um[first] + radius_um[second])
    first, second = first[near], second[near]
    while len(first):
        waits = np.zeros(n, bool)
        waits[second] = True
        state[(state == 0) & ~waits] = 1
        state[second[state[first] == 1]] = -1
        open_ = (state[first] == 0) & (state[second] == 0)
        first, second = first[open_], second[open_]
    return state >= 0


def _thin_out(
    rng: np.random.Generator,
    keep: npt.NDArray[np.bool_],
    kind: npt.NDArray[np.int8],
    appearance: Appearance,
    area_mm2: float,
    layout: Layout,
) -> npt.NDArray[np.bool_]:
    """Remove nuclei at random where there are more per mm² than the appearance has."""
    solid = 1 - layout.clear[::4, ::4]
    tumour_mm2 = float((layout.tumour[::4, ::4] * solid).mean()) * area_mm2
    stroma_mm2 = float(((1 - layout.tumour[::4, ::4]) * solid).mean()) * area_mm2
    keep = keep.copy()
    for code, wanted in (
        (_TUMOUR, appearance.density_mm2 * tumour_mm2),
        (_STROMA, appearance.stroma_mm2 * (stroma_mm2 + 0.02 * tumour_mm2)),
        (_LYMPHOCYTE, appearance.lymphocytes_mm2 * (stroma_mm2 + 0.05 * tumour_mm2)),
    ):
        found = np.flatnonzero(keep & (kind == code))
        spare = len(found) - int(wanted) - 1
        if spare > 0:
            keep[rng.choice(found, spare, replace=False)] = False
    return keep


def _positive(
    rng: np.random.Generator, kind: npt.NDArray[np.int8], cluster: Plane, index: float, n_inside: int
) -> npt.NDArray[np.bool_]:
    """Choose positive nuclei in loose clusters, so that the tumour inside the field has the index."""
    n = len(kind)
    score = cluster.astype(np.float64) + rng.logistic(0, 1.0, n)
    tumour, inside = kind == _TUMOUR, np.arange(n) < n_inside
    fraction = np.full(n, index / 100)
    fraction[kind == _STROMA] *= 0.1
    fraction[kind == _LYMPHOCYTE] *= 0.15
    positive = np.zeros(n, bool)
    for group in (tumour & inside, tumour & ~inside, ~tumour):
        members = np.flatnonzero(group)
        if len(members):
            quota = int(fraction[members].mean() * len(members) + rng.random())
            positive[members[np.argsort(-score[members])[:quota]]] = True
    return positive


@dataclass(frozen=True, slots=True)
class Traits:
    """Stain and texture of each nucleus; columns like those of `Nuclei`.

    Parameters
    ----------
    hematoxylin, dab
        Amount of dye.
    hollow, envelope, grain, patchy
        Paleness of the centre, darkness of the envelope, clumping, and unevenness of the DAB.
    soft_um
        Width of the edge.
    ragged, bend
        Fine irregularity of the outline in radii; curvature of the long axis per µm.
    gap
        Strength of the pale gap around the nucleus, in [0, 1].
    waves
        (n, 3, 2): cosine and sine coefficients of harmonics 2, 3 and 5 of the outline, in radii.
    nucleoli
        (n, 2, 4): x and y in radii, radius in µm, strength.
    kept
        Fraction of the hematoxylin that remains beside DAB; `hematoxylin` is already multiplied by it.
    """

    hematoxylin: Plane
    dab: Plane
    hollow: Plane
    envelope: Plane
    grain: Plane
    patchy: Plane
    soft_um: Plane
    ragged: Plane
    bend: Plane
    gap: Plane
    waves: Plane
    nucleoli: Plane
    kept: Plane

    @classmethod
    def random(cls, rng: np.random.Generator, appearance: Appearance, nuclei: Nuclei) -> Self:
        """Sample the traits of nuclei on a slide of this appearance."""
        n, kind, positive = len(nuclei.x), nuclei.kind, nuclei.positive
        tumour = kind == _TUMOUR

        def spread(mean: float, sigma: float) -> Column:
            return mean * np.exp(rng.normal(0, sigma, n))

        darker = np.array([1.0, appearance.stroma_dark, 1.5])[kind]
        hema = spread(appearance.nuclear_od, 0.3) * darker
        dab = np.maximum(spread(appearance.dab_od, 0.35), 0.35)
        weak = rng.random(n) < appearance.weak
        dab[weak] = rng.uniform(0.22, 0.5, weak.sum())
        faint = np.minimum(np.abs(rng.normal(0, appearance.faint_od, n)), 0.14)
        dab = np.where(positive, dab, faint)
        kept = np.where(positive, rng.uniform(0.1, 0.7, n), 1)
        hema *= kept
        hollow = np.where(tumour, np.clip(appearance.hollow + rng.normal(0, 0.15, n), 0, 0.92), 0.05)
        mitosis = tumour & (rng.random(n) < 0.012)
        hema[mitosis], hollow[mitosis] = hema[mitosis] * 2.2, 0
        pyknotic = tumour & (rng.random(n) < 0.02)
        hema[pyknotic] *= 1.7
        size = np.where(mitosis, 0.1, appearance.irregularity) * np.where(kind == _STROMA, rng.uniform(1, 3, n), 1)
        waves = rng.normal(0, 1, (n, 3, 2)) * size[:, None, None] * np.array([1.0, 0.7, 0.35])[None, :, None]
        nucleoli = np.stack(
            [
                rng.normal(0, 0.3, (n, 2)),
                rng.normal(0, 0.3, (n, 2)),
                rng.uniform(0.5, 1.0, (n, 2)),
                rng.gamma(0.7, 0.6, (n, 2)) * np.where(tumour & ~mitosis, appearance.hollow + 0.15, 0)[:, None],
            ],
            2,
        )
        columns = (
            hema,
            dab,
            hollow,
            np.clip(appearance.envelope + rng.normal(0, 0.1, n), 0, 1) * np.where(mitosis, 0, 1),
            appearance.grain * np.where(mitosis, 1.5, np.where(tumour, rng.uniform(0.4, 1.6, n), 0.5)),
            np.clip(appearance.patchy + rng.normal(0, 0.15, n), 0.03, 1),
            rng.uniform(0.5, 0.9, n) + rng.gamma(0.5, 0.5, n),
            appearance.irregularity * rng.uniform(0.2, 1.1, n),
            rng.normal(0, 0.25, n) * nuclei.width_um / nuclei.length_um**2,
            rng.uniform(0, 0.9, n) * (rng.random(n) < 0.5),
            waves,
            nucleoli,
            kept,
        )
        return cls(*(np.asarray(column, np.float32) for column in columns))


def draw_nuclei(
    rng: np.random.Generator, shape: tuple[int, int], mpp: float, nuclei: Nuclei, traits: Traits
) -> tuple[Plane, Plane, Plane, npt.NDArray[np.int32]]:
    """Draw all nuclei; the outlines depend on the state of `rng` only, not on the dyes.

    Returns
    -------
    hematoxylin, dab
        (H, W) dyes.
    bare
        (H, W) in [0, 1]: 1 outside nuclei and the pale gap around some.
    labels
        (H, W): row + 1 of the nucleus with the nearest centre, in units of its radius; 0 outside all nuclei.
    """
    half_px = np.ceil((nuclei.length_um * 1.25 + 1.5) / mpp).astype(int) + 1
    outside = [-nuclei.x, -nuclei.y, nuclei.x - shape[1], nuclei.y - shape[0]]
    margin = int(half_px.max(initial=1)) + int(np.max(outside, initial=0)) + 2
    big = shape[0] + 2 * margin, shape[1] + 2 * margin
    hematoxylin, dab, bare = np.zeros(big, np.float32), np.zeros(big, np.float32), np.ones(big, np.float32)
    nearest, labels = np.ones(big, np.float32), np.zeros(big, np.int32)
    bank = [smooth_noise(rng, (_BANK_PX, _BANK_PX), size / mpp) for size in (1.0, 2.8)]
    by_size = np.argsort(half_px, kind="stable")
    start = 0
    while start < len(by_size):
        alike = int(np.searchsorted(half_px[by_size], half_px[by_size[start]] * 1.15 + 1, side="right"))
        count = max(1, _CHUNK_PX // (2 * int(half_px[by_size[start]]) + 1) ** 2)
        rows = by_size[start : min(alike, start + count)]
        start += len(rows)
        half = int(half_px[rows].max())
        hema, brown, cover, gap, rho = _draw_chunk(rng, mpp, nuclei, traits, bank, rows, half)
        tops = np.floor(nuclei.y[rows]).astype(int) + margin - half
        lefts = np.floor(nuclei.x[rows]).astype(int) + margin - half
        for i in rng.permutation(len(rows)):
            window = np.s_[tops[i] : tops[i] + 2 * half + 1, lefts[i] : lefts[i] + 2 * half + 1]
            under = 1 - 0.4 * cover[i]
            hematoxylin[window] = hematoxylin[window] * under + hema[i]
            dab[window] = dab[window] * under + brown[i]
            bare[window] *= gap[i]
            mine = rho[i] < nearest[window]
            nearest[window][mine] = rho[i][mine]
            labels[window][mine] = rows[i] + 1
    crop = np.s_[margin : margin + shape[0], margin : margin + shape[1]]
    return hematoxylin[crop].copy(), dab[crop].copy(), bare[crop].copy(), labels[crop].copy()


def _draw_chunk(
    rng: np.random.Generator,
    mpp: float,
    nuclei: Nuclei,
    traits: Traits,
    bank: list[Plane],
    rows: npt.NDArray[np.intp],
    half: int,
) -> tuple[Plane, Plane, Plane, Plane, Plane]:
    """Return hematoxylin, DAB, cover, gap and distance in radii of some nuclei, each (n, side, side)."""

    def column(values: npt.NDArray[np.floating]) -> Plane:
        return values[rows].astype(np.float32)[:, None, None]

    steps = np.arange(-half, half + 1, dtype=np.float32) * np.float32(mpp)
    dx = steps[None, None, :] - column((nuclei.x % 1) - 0.5) * np.float32(mpp)
    dy = steps[None, :, None] - column((nuclei.y % 1) - 0.5) * np.float32(mpp)
    cos, sin = column(np.cos(nuclei.angle)), column(np.sin(nuclei.angle))
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    v += column(traits.bend) * u * u
    wide, long = column(nuclei.width_um), column(nuclei.length_um)
    a, b = u / long, v / wide
    rho = np.sqrt(a * a + b * b) + np.float32(1e-3)
    c, s = a / rho, b / rho
    waves = traits.waves[rows][..., None, None]
    c2, s2 = c * c - s * s, 2 * c * s
    c3, s3 = c2 * c - s2 * s, s2 * c + c2 * s
    edge = 1 + waves[:, 0, 0] * c2 + waves[:, 0, 1] * s2 + waves[:, 1, 0] * c3 + waves[:, 1, 1] * s3
    edge += waves[:, 2, 0] * (c3 * c2 - s3 * s2) + waves[:, 2, 1] * (s3 * c2 + c3 * s2)
    rho /= np.maximum(edge, np.float32(0.5))
    coarse, fine = (_noise_patches(rng, noise, len(rows), 2 * half + 1) for noise in bank[::-1])
    rho *= 1 + column(traits.ragged) * coarse
    soft = np.maximum(column(traits.soft_um), np.float32(mpp * 0.7))
    cover = np.clip((1 - rho) * np.sqrt(wide * long) / soft + np.float32(0.5), 0, 1)
    square = rho * rho
    ring = np.exp(-np.square((rho - np.float32(0.88)) * np.float32(7)))
    profile = 1 - column(traits.hollow) * (1 - np.minimum(square * square, 1)) + column(traits.envelope) * ring
    grain = column(traits.grain)
    spots = np.zeros_like(rho)
    for k in range(traits.nucleoli.shape[1]):
        x, y, radius, strength = (traits.nucleoli[rows, k, i][:, None, None] for i in range(4))
        spots += strength * np.exp(-(np.square(u - x * long) + np.square(v - y * wide)) / np.square(radius))
    hema = (
        column(traits.hematoxylin)
        * cover
        * np.maximum(profile * (1 + grain * (fine * np.float32(0.6) + coarse * np.float32(0.8))) + spots, 0.05)
    )
    patchy = column(traits.patchy)
    uneven = np.exp(patchy * (coarse * np.float32(0.7) + fine * np.float32(0.5)) - patchy * patchy * np.float32(0.35))
    body = 1 - np.float32(0.5) * column(traits.hollow) * (1 - np.minimum(square, 1)) + np.float32(0.3) * spots
    brown = column(traits.dab) * cover * uneven * body
    gap = 1 - column(traits.gap) * np.clip((np.float32(1.3) - rho) * np.float32(4), 0, 1)
    gap = np.minimum(gap, 1 - cover * np.float32(0.8))
    rho[rho >= 1] = 2
    return hema, brown, cover, gap, rho


def _noise_patches(rng: np.random.Generator, noise: Plane, n: int, side: int) -> Plane:
    """Return (n, side, side) random patches of periodic noise."""
    steps = np.arange(side)
    tops, lefts = rng.integers(0, _BANK_PX, (2, n))
    rows = (tops[:, None] + steps) % _BANK_PX
    columns = (lefts[:, None] + steps) % _BANK_PX
    return np.asarray(noise[rows[:, :, None], columns[:, None, :]])
