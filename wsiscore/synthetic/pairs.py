"""Pairs: the same tissue in several stains, pixel on pixel, with a rule by which one tells of the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Look
from wsiscore.synthetic.field import REACH_UM, Known
from wsiscore.synthetic.ground import Flow, Layout
from wsiscore.synthetic.nuclei import Nuclei, Traits, place_nuclei
from wsiscore.synthetic.stains import STAINS, Tissue

__all__ = ["PairField", "render_pair"]

_DIFFICULTY = 0.4  # of the look of a pair at most: laboratories that stain one section twice work carefully
_INDEX = (0.8, 1.2)  # of the beta distribution of the index
_LARGER, _DARKER, _COARSER = 0.2, 0.5, 1.0  # what positive nuclei are more than others, relative, at form 1
_NUCLEOLUS_UM = (0.7, 1.1)
_NUCLEOLUS = 1.6  # its strength


@dataclass(frozen=True, slots=True, kw_only=True)
class PairField(Known):
    """One field in several stains, and the truth about it.

    Parameters
    ----------
    pictures
        Stain -> (H, W, 3) in 0..255.
    """

    pictures: dict[str, npt.NDArray[np.uint8]]


def render_pair(
    rng: np.random.Generator,
    height_px: int,
    width_px: int,
    mpp: float,
    names: Sequence[str],
    *,
    look: Look | None = None,
    index: float | None = None,
    layout: Layout | None = None,
    form: float = 1.0,
) -> PairField:
    """Paint one field in several stains.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same pixels.
    height_px, width_px
        Size of the pictures.
    mpp
        Micrometres per pixel.
    names
        Stains, of `STAINS`.
    look
        Of the IHC; a clean one is drawn if not given.
    index
        Positive tumour nuclei in percent; drawn if not given.
    layout
        Where tumour and glass are; drawn if not given.
    form
        How much positive nuclei differ from others in form: at 0 nothing but DAB tells them, at 1 they are 20 %
        larger and 50 % darker, have coarser chromatin and two clear nucleoli, while negative ones have none.

    Raises
    ------
    ValueError
        If a name is none of `STAINS`, or `form` lies outside [0, 1].
    """
    if unknown := [name for name in names if name not in STAINS]:
        raise ValueError(f"no stain is called {unknown[0]!r}; there are: {', '.join(STAINS)}")
    if not 0 <= form <= 1:
        raise ValueError(f"form lies in [0, 1], got {form}")
    shape = height_px, width_px
    look = look or replace(Look.random(rng, float(rng.uniform(0, _DIFFICULTY))), accidents=0.0)
    index = 100 * float(rng.beta(*_INDEX)) if index is None else index
    layout = layout or Layout.random(rng, height_px, width_px, mpp)
    flow = Flow.random(rng, shape, mpp)
    nuclei = place_nuclei(rng, shape, mpp, look, layout, flow, index, -REACH_UM)
    traits = Traits.random(rng, look, nuclei)
    nuclei, traits = _formed(rng, nuclei, traits, form)
    tissue = Tissue(shape, mpp, look, layout, flow, nuclei, traits, int(rng.integers(2**62)))
    known = tissue.known()
    return PairField(
        pictures={name: tissue.paint(name) for name in names},
        labels=known.labels,
        x_um=known.x_um,
        y_um=known.y_um,
        positive=known.positive,
        kind=known.kind,
    )


def _formed(rng: np.random.Generator, nuclei: Nuclei, traits: Traits, form: float) -> tuple[Nuclei, Traits]:
    """Give positive nuclei the form that tells them."""
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
