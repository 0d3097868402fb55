"""Pixel-aligned pictures of one tissue in several stains, where the form of a nucleus predicts its Ki67 class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import MARGIN_UM, FieldTruth
from wsiscore.synthetic.ground import Flow, Layout
from wsiscore.synthetic.nuclei import Nuclei, Traits, place_nuclei
from wsiscore.synthetic.stains import STAINS, Tissue

__all__ = ["RenderedPair", "render_pair"]

_DIFFICULTY = 0.4  # greatest difficulty of a pair's appearance
_INDEX = (0.8, 1.2)  # of the beta distribution of the index
_LARGER, _DARKER, _COARSER = 0.2, 0.5, 1.0  # relative excess of positive nuclei at form 1
_NUCLEOLUS_UM = (0.7, 1.1)
_NUCLEOLUS = 1.6  # strength


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedPair(FieldTruth):
    """One field in several stains, with its nuclei.

    Parameters
    ----------
    pictures
        (H, W, 3), 0..255, by stain.
    """

    pictures: dict[str, npt.NDArray[np.uint8]]


def render_pair(
    rng: np.random.Generator,
    height_px: int,
    width_px: int,
    mpp: float,
    names: Sequence[str],
    *,
    appearance: Appearance | None = None,
    index: float | None = None,
    layout: Layout | None = None,
    form: float = 1.0,
) -> RenderedPair:
    """Render one field in several stains.

    Parameters
    ----------
    rng
        Random generator; the same state gives the same pixels.
    height_px, width_px
        Size of the pictures.
    mpp
        Micrometres per pixel.
    names
        Names from `STAINS`.
    appearance
        Parameters of the IHC; by default a clean one is sampled.
    index
        Ki67 index in percent; by default sampled.
    layout
        Tumour and empty glass; by default sampled.
    form
        Difference in form between positive and negative nuclei. At 0 they differ in DAB only; at 1 positive ones are
        20 % larger and 50 % darker, with coarser chromatin and two clear nucleoli, and negative ones have none.

    Raises
    ------
    ValueError
        If a name is not in `STAINS`, or `form` is outside [0, 1].
    """
    if unknown := [name for name in names if name not in STAINS]:
        raise ValueError(f"unknown stain {unknown[0]!r}; choose from {', '.join(STAINS)}")
    if not 0 <= form <= 1:
        raise ValueError(f"form must be in [0, 1], got {form}")
    shape = height_px, width_px
    appearance = appearance or replace(Appearance.random(rng, float(rng.uniform(0, _DIFFICULTY))), artefacts=0.0)
    index = 100 * float(rng.beta(*_INDEX)) if index is None else index
    layout = layout or Layout.random(rng, height_px, width_px, mpp)
    flow = Flow.random(rng, shape, mpp)
    nuclei = place_nuclei(rng, shape, mpp, appearance, layout, flow, index, -MARGIN_UM)
    traits = Traits.random(rng, appearance, nuclei)
    nuclei, traits = _formed(rng, nuclei, traits, form)
    tissue = Tissue(shape, mpp, appearance, layout, flow, nuclei, traits, int(rng.integers(2**62)))
    truth = tissue.truth()
    return RenderedPair(
        pictures={name: tissue.render(name) for name in names},
        labels=truth.labels,
        x_um=truth.x_um,
        y_um=truth.y_um,
        positive=truth.positive,
        kind=truth.kind,
    )


def _formed(rng: np.random.Generator, nuclei: Nuclei, traits: Traits, form: float) -> tuple[Nuclei, Traits]:
    """Return nuclei whose form depends on their class."""
    more = np.where(nuclei.positive, form, 0.0)
    size = 1 + _LARGER * more
    nucleoli = traits.nucleoli.copy()
    nucleoli[:, :, 2] += more[:, None] * (rng.uniform(*_NUCLEOLUS_UM, nucleoli.shape[:2]) - nucleoli[:, :, 2])
    nucleoli[:, :, 3] *= 1 - form
    nucleoli[:, :, 3] += more[:, None] * _NUCLEOLUS
    nuclei = replace(nuclei, length_um=nuclei.length_um * size, width_um=nuclei.width_um * size)
    return nuclei, replace(
        traits,
        hematoxylin=(traits.hematoxylin * (1 + _DARKER * more)).astype(np.float32),
        grain=np.clip(traits.grain * (1 + _COARSER * more), None, np.maximum(traits.grain, 0.45)).astype(np.float32),
        nucleoli=nucleoli,
    )
