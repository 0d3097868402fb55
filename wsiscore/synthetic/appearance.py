"""The appearance of a slide: its dyes, nuclei, tissue and camera."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

__all__ = ["Appearance", "Triple", "dye"]

Triple = tuple[float, float, float]
"""A value for each of red, green and blue."""


def _triple(values: npt.ArrayLike) -> Triple:
    red, green, blue = (float(value) for value in np.asarray(values))
    return red, green, blue


def dye(rng: np.random.Generator, one: Triple, other: Triple, fraction: float) -> Triple:
    """Return a unit stain vector between two others, with a little noise; `fraction` 0 is the first, 1 the second."""
    vector = np.asarray(one) * (1 - fraction) + np.asarray(other) * fraction + rng.normal(0, 0.02, 3)
    vector = np.maximum(vector, 0.05)
    return _triple(vector / np.linalg.norm(vector))


@dataclass(frozen=True, slots=True)
class Appearance:
    """Parameters that all fields of one slide have in common; `random` samples them.

    Parameters
    ----------
    hematoxylin, dab
        Stain vectors: optical density of red, green and blue, of length 1.
    glass
        RGB of empty glass, 0..255.
    stray
        Stray light, as a fraction of `glass`; it is added behind the darkest nucleus too.
    cytoplasm_od, stroma_od
        Hematoxylin outside nuclei, in tumour and in stroma, OD.
    texture, refraction
        Relative strength of grain and fibres in the dye; OD of colourless lines and grain.
    background_od, blush_od
        DAB everywhere, and in the cytoplasm of some cells, OD.
    diameter_um, diameter_spread
        Geometric mean diameter of tumour nuclei; standard deviation of its logarithm.
    elongation, irregularity
        Mean of length over width, minus 1; relative amplitude of the outline's irregularities.
    density_mm2, crowding
        Requested tumour nuclei per mm²; allowed overlap, from 0 (none) to 1 (half).
    stroma_mm2, lymphocytes_mm2
        Other nuclei per mm² of stroma.
    spindle, stroma_dark
        Approximate mean of length over width of stromal nuclei, minus 1.1; their hematoxylin relative to tumour nuclei.
    nuclear_od, hollow, envelope, grain
        Hematoxylin of tumour nuclei, OD; paleness of their centre, darkness of their envelope, and clumping, 0..1.
    dab_od, weak, faint_od, patchy
        Median DAB of strong nuclei, OD; fraction of weak ones; DAB of negative nuclei (at most 0.14, where the
        weakest positive one has 0.22); unevenness of the stain, 0..1.
    debris_mm2, pigment_mm2, ghosts_mm2
        Objects per mm² that are not nuclei: brown specks, clusters of black grains, blurred spots.
    blur_um, sharpen, noise, fringe_px, jpeg
        Camera: blur, unsharp masking, noise (grey levels), chromatic shift, JPEG quality (0: no JPEG).
    artefacts
        Probability of a fold, a pen mark or an out-of-focus part in a field.
    """

    hematoxylin: Triple
    dab: Triple
    glass: Triple
    stray: float
    cytoplasm_od: float
    stroma_od: float
    texture: float
    refraction: float
    background_od: float
    blush_od: float
    diameter_um: float
    diameter_spread: float
    elongation: float
    irregularity: float
    density_mm2: float
    crowding: float
    stroma_mm2: float
    lymphocytes_mm2: float
    spindle: float
    stroma_dark: float
    nuclear_od: float
    hollow: float
    envelope: float
    grain: float
    dab_od: float
    weak: float
    faint_od: float
    patchy: float
    debris_mm2: float
    pigment_mm2: float
    ghosts_mm2: float
    blur_um: float
    sharpen: float
    noise: float
    fringe_px: float
    jpeg: int
    artefacts: float

    @classmethod
    def random(cls, rng: np.random.Generator, difficulty: float = 1.0) -> Self:
        """Sample an appearance.

        Parameters
        ----------
        rng
            Source of randomness.
        difficulty
            Range of the variation: 0 is clean and even, 1 is the variation between laboratories and cameras.
        """

        def near(low: float, high: float, span: float = 0.0) -> float:
            """Uniform in [low, high + span · difficulty]."""
            return float(rng.uniform(low, high + span * difficulty))

        def rarely(chance: float, low: float, high: float) -> float:
            return float(rng.uniform(low, high)) if rng.random() < chance * difficulty else 0.0

        violet, red = rng.beta(0.6, 1.1) * (0.5 + 0.5 * difficulty), rng.beta(1.2, 2.2)
        warm = rng.choice([0.0, 0.03, 0.14], p=[0.45, 0.3, 0.25])
        level = near(222, 245) - (rarely(0.5, 0, 50) if warm < 0.1 else rarely(0.5, 0, 15))
        tint = rng.normal(0, 0.005, 3) + warm * np.array([0.03, 0.0, -rng.uniform(0.7, 1.1)])
        return cls(
            hematoxylin=dye(rng, (0.79, 0.55, 0.30), (0.60, 0.74, 0.30), violet),
            dab=dye(rng, (0.23, 0.55, 0.80), (0.42, 0.62, 0.66), red),
            glass=_triple(np.clip(level * (1 + tint), 0, 250)),
            stray=near(0.0, 0.04, 0.08),
            cytoplasm_od=near(0.008, 0.035, 0.02) + rarely(0.15, 0, 0.06),
            stroma_od=near(0.01, 0.03, 0.03) + rarely(0.15, 0, 0.05),
            texture=near(0.3, 0.6, 0.4),
            refraction=near(0.002, 0.012, 0.01) + rarely(0.25, 0.01, 0.05),
            background_od=near(0.0, 0.01, 0.03) + rarely(0.2, 0.0, 0.08),
            blush_od=near(0.0, 0.02, 0.0) + rarely(0.4, 0.03, 0.2),
            diameter_um=near(7.5, 10.5, 2.0) + rarely(0.2, 1, 4),
            diameter_spread=near(0.12, 0.18, 0.08),
            elongation=near(0.12, 0.4, 0.3) + rarely(0.15, 0.3, 0.9),
            irregularity=near(0.02, 0.045, 0.04),
            density_mm2=near(3000, 6500, 2500) * float(rng.choice([1.0, 0.5], p=[0.75, 0.25])),
            crowding=near(0.0, 0.2, 0.35),
            stroma_mm2=near(600, 2600),
            lymphocytes_mm2=near(50, 300) + rarely(0.35, 500, 3000),
            spindle=near(0.6, 2.4),
            stroma_dark=near(0.8, 1.6),
            nuclear_od=near(0.17, 0.36) + rarely(0.3, 0.05, 0.25) - rarely(0.2, 0.04, 0.1),
            hollow=near(0.0, 0.45) + rarely(0.3, 0.1, 0.4),
            envelope=near(0.0, 0.3) + rarely(0.3, 0.05, 0.35),
            grain=near(0.05, 0.25) + rarely(0.25, 0.05, 0.25),
            dab_od=near(0.8, 1.3) + rarely(0.35, 0.2, 1.4) - rarely(0.2, 0.1, 0.4),
            weak=near(0.05, 0.2, 0.25),
            faint_od=near(0.005, 0.02) + rarely(0.35, 0.01, 0.08),
            patchy=near(0.1, 0.35) + rarely(0.3, 0.1, 0.5),
            debris_mm2=near(0, 15) + rarely(0.3, 30, 400),
            pigment_mm2=rarely(0.1, 10, 80),
            ghosts_mm2=near(0, 40) + rarely(0.4, 100, 800),
            blur_um=near(0.2, 0.4, 0.1) + rarely(0.25, 0.1, 0.7),
            sharpen=near(0.0, 0.3) + rarely(0.35, 0.3, 1.6),
            noise=near(0.5, 1.8, 1.5) + rarely(0.15, 1, 4),
            fringe_px=near(0.0, 0.1) + rarely(0.2, 0.1, 0.5),
            jpeg=int(rng.integers(92 - int(32 * difficulty), 97)),
            artefacts=0.12 * difficulty,
        )
