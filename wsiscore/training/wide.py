"""Rendered fields of more kinds: small crowded nuclei, nests of low index, grey-brown negatives, black nuclei."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field
from wsiscore.synthetic.ground import Layout, smooth_noise
from wsiscore.training.prepare import DatasetSettings, cells_of, random_appearance

__all__ = ["WideDatasetSettings"]

_MARGIN_UM = 14.0
_MAGNIFICATION = 0.08
_INDEX = (0.6, 1.1)
_FINER = 0.3  # fraction of fields rendered at twice the resolution and averaged
_SMALL, _LOW_NESTS = 0.30, 0.50  # up to these fractions: small nuclei; nests of low index
_GREY_BROWN = 0.35
_BLACK = 0.12


@dataclass(frozen=True, slots=True)
class WideDatasetSettings(DatasetSettings):
    """What a rendered dataset with more kinds of fields holds.

    Parameters
    ----------
    appearances
        ``wide``; it tells the settings from those of other datasets.
    """

    appearances: str = "wide"

    def render(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return field `number` and its cells, as `DatasetSettings.render`."""
        rng = np.random.default_rng([self.seed, number])
        mpp = self.mpp * float(np.exp(rng.normal(0, _MAGNIFICATION)))
        factor = 2 if rng.random() < _FINER else 1
        margin = round(_MARGIN_UM / mpp)
        side = (self.side_px + 2 * margin) * factor
        appearance, where, index = _appearance(rng)
        layout = Layout.random(rng, side, side, mpp / factor)
        if where == "everywhere":
            layout = replace(layout, tumour=np.ones_like(layout.tumour))
        elif where == "nests":
            layout = replace(layout, tumour=_nests(rng, side, mpp / factor))
        field = render_field(rng, side, side, mpp / factor, appearance=appearance, index=index, layout=layout)
        rgb = cv2.resize(field.rgb, (side // factor, side // factor), interpolation=cv2.INTER_AREA)
        inner = np.s_[margin : margin + self.side_px, margin : margin + self.side_px]
        return {"rgb": rgb[inner].astype(np.uint8), "cells": cells_of(field)[::factor, ::factor][inner]}


def _nests(rng: np.random.Generator, side: int, mpp: float) -> npt.NDArray[np.float32]:
    """Return where tumour grows, in [0, 1]: nests of 50 to 130 µm with thin septa between them."""
    septa = np.abs(
        smooth_noise(rng, (side, side), rng.uniform(50, 130) / mpp) + 0.2 * smooth_noise(rng, (side, side), 20 / mpp)
    )
    return np.clip((septa - np.float32(rng.uniform(0.08, 0.4))) * 12, 0, 1).astype(np.float32)


def _appearance(rng: np.random.Generator) -> tuple[Appearance, str, float]:
    """Return a random appearance, where tumour grows (everywhere, nests or random), and the index in percent."""
    appearance, nests = random_appearance(rng)
    index = 100 * float(rng.beta(*_INDEX))
    where = "random" if nests else "everywhere"
    kind = rng.random()
    if kind < _SMALL:
        appearance = replace(
            appearance,
            diameter_um=float(np.exp(rng.uniform(np.log(4.0), np.log(7.2)))),
            diameter_spread=float(rng.uniform(0.1, 0.25)),
            density_mm2=float(rng.uniform(4000, 11000)),
            crowding=float(rng.uniform(0.0, 0.6)),
            nuclear_od=float(rng.uniform(0.15, 0.6)),
            hollow=float(rng.uniform(0, 0.35)),
        )
        where = str(rng.choice(["nests", "random", "everywhere"]))
    elif kind < _LOW_NESTS:
        appearance = replace(
            appearance,
            diameter_um=float(rng.uniform(5.2, 9.0)),
            density_mm2=float(rng.uniform(4500, 9000)),
            crowding=float(rng.uniform(0.0, 0.5)),
        )
        where, index = "nests", float(rng.uniform(0, 14))
    if rng.random() < _GREY_BROWN:
        appearance = replace(appearance, faint_od=float(rng.uniform(0.03, 0.12)), weak=float(rng.uniform(0.3, 0.8)))
    if rng.random() < _BLACK:
        appearance = replace(appearance, dab_od=float(rng.uniform(1.5, 2.6)), patchy=float(rng.uniform(0.05, 0.3)))
    return appearance, where, index
