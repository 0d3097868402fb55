"""The stains in which one tissue can be painted: what each dye takes to, and what light makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Look, Triple, dye
from wsiscore.synthetic.camera import photograph
from wsiscore.synthetic.field import Known
from wsiscore.synthetic.ground import Flow, Layout, Plane, add_dirt, add_ground
from wsiscore.synthetic.nuclei import Nuclei, Traits, draw_nuclei

__all__ = ["STAINS", "Tissue"]

Picture = npt.NDArray[np.uint8]

_GREY, _GREEN = (1.0, 1.0, 1.0), (0.12, 1.0, 0.25)
_BORDER = np.ones((3, 3), np.uint8)  # a boundary is 1 px of either side


@dataclass(frozen=True, slots=True)
class Tissue:
    """Everything about a field but its stain; painted twice in one stain it gives the same pixels.

    Parameters
    ----------
    shape
        Height and width in pixels.
    mpp
        Micrometres per pixel.
    look
        Of the IHC; the other stains take from it what they share, such as the camera.
    layout, flow, nuclei, traits
        What lies where, and how the nuclei are built.
    seed
        Of all that is drawn while painting.
    """

    shape: tuple[int, int]
    mpp: float
    look: Look
    layout: Layout
    flow: Flow
    nuclei: Nuclei
    traits: Traits
    seed: int

    def paint(self, stain: str) -> Picture:
        """Return the (H, W, 3) picture, 0..255, in one of `STAINS`."""
        return _PAINTERS[stain](self, np.random.default_rng([self.seed, 1 + STAINS.index(stain)]))

    def known(self) -> Known:
        """Return the nuclei whose centre lies in the field, and all labels."""
        n, nuclei = self.nuclei.n_inside, self.nuclei
        return Known(
            labels=self._draw(self.traits)[1][3],
            x_um=nuclei.x[:n] * self.mpp,
            y_um=nuclei.y[:n] * self.mpp,
            positive=nuclei.positive[:n],
            kind=nuclei.kind[:n],
        )

    def _draw(self, traits: Traits) -> tuple[np.random.Generator, tuple[Plane, Plane, Plane, npt.NDArray[np.int32]]]:
        """Return the nuclei with these traits, always of the same outlines, and the generator to go on with."""
        rng = np.random.default_rng(self.seed)
        return rng, draw_nuclei(rng, self.shape, self.mpp, self.nuclei, traits)

    def _ground(self, rng: np.random.Generator, look: Look, body: Plane, brown: Plane, bare: Plane) -> Plane:
        """Add what lies between the nuclei to two dyes; return the colourless density."""
        n = self.nuclei.n_inside
        cells = (
            self.nuclei.y[:n].astype(np.intp),
            self.nuclei.x[:n].astype(np.intp),
            self.nuclei.positive[:n],
        )
        return add_ground(rng, self.mpp, look, self.layout, self.flow, cells, body, brown, bare)


def _paint_ihc(tissue: Tissue, camera: np.random.Generator) -> Picture:
    look = tissue.look
    rng, (hematoxylin, dab, bare, _) = tissue._draw(tissue.traits)
    residual = tissue._ground(rng, look, hematoxylin, dab, bare)
    add_dirt(rng, tissue.mpp, look, tissue.layout, hematoxylin, dab, residual)
    return photograph(camera, tissue.mpp, look, ((hematoxylin, look.hematoxylin), (dab, look.dab)), residual)


def _paint_hematoxylin(tissue: Tissue, camera: np.random.Generator) -> Picture:
    look = tissue.look
    rng, (hematoxylin, unused, bare, _) = tissue._draw(_undiminished(tissue.traits))
    residual = tissue._ground(rng, look, hematoxylin, unused, bare)
    add_dirt(rng, tissue.mpp, look, tissue.layout, hematoxylin, unused, residual)
    return photograph(camera, tissue.mpp, look, ((hematoxylin, look.hematoxylin),), residual)


def _paint_he(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Paint hematoxylin and eosin: dark nuclei, pink fibres, cytoplasm between pink and violet."""
    violet = dye(camera, (0.52, 0.76, 0.38), (0.61, 0.73, 0.31), camera.random())
    pink: Triple = dye(camera, (0.18, 0.91, 0.37), (0.30, 0.83, 0.46), camera.random())
    level = camera.uniform(238, 247)
    look = replace(
        tissue.look,
        glass=(level, level - camera.uniform(0, 4), level),
        stray=min(tissue.look.stray, 0.03),
        cytoplasm_od=float(camera.uniform(0.15, 0.25)),
        stroma_od=float(camera.uniform(0.16, 0.27)),
        texture=float(camera.uniform(0.3, 0.5)),
        refraction=0.01,
        background_od=0.0,
        blush_od=0.0,
    )
    full = _undiminished(tissue.traits)
    strength = np.float32(camera.uniform(0.45, 0.65) / max(tissue.look.nuclear_od, 0.1))
    rng, (hematoxylin, unused, bare, _) = tissue._draw(
        replace(full, hematoxylin=full.hematoxylin * strength, hollow=np.clip(full.hollow, 0.2, 0.6))
    )
    eosin = np.zeros(tissue.shape, np.float32)
    residual = tissue._ground(rng, look, eosin, unused, bare)
    hematoxylin += eosin * tissue.layout.tumour * np.float32(camera.uniform(0.2, 0.6))
    add_dirt(rng, tissue.mpp, look, tissue.layout, hematoxylin, unused, residual)
    return photograph(camera, tissue.mpp, look, ((hematoxylin, violet), (eosin, pink)), residual)


def _paint_dapi(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Paint DNA: all of the nucleus glows, the nucleoli less."""
    traits = _undiminished(tissue.traits)
    nucleoli = traits.nucleoli.copy()
    nucleoli[:, :, 3] *= -0.4
    amount = np.sqrt(traits.hematoxylin / max(tissue.look.nuclear_od, 0.05)) * 0.55
    traits = replace(
        traits, hematoxylin=amount, hollow=traits.hollow * 0.5, grain=traits.grain * 0.9, nucleoli=nucleoli
    )
    return _glow(camera, tissue.mpp, tissue._draw(traits)[1][0], _GREY, blur_um=0.35, haze=0.07)


def _paint_lap2(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Paint lamina-associated polypeptide 2: the envelopes of the nuclei glow, some hardly."""
    traits, n = tissue.traits, len(tissue.traits.rim)
    nucleoli = traits.nucleoli.copy()
    nucleoli[:, :, 3] = 0
    traits = replace(
        traits,
        hematoxylin=(0.45 * np.exp(camera.normal(0, 0.5, n))).astype(np.float32),
        hollow=np.full(n, 0.9, np.float32),
        rim=camera.uniform(1.0, 2.5, n).astype(np.float32),
        grain=np.full(n, 0.6, np.float32),
        nucleoli=nucleoli,
    )
    return _glow(camera, tissue.mpp, tissue._draw(traits)[1][0], _GREEN, blur_um=0.2, haze=0.02)


def _paint_marker(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Paint fluorescent Ki67: only what takes DAB in the IHC glows."""
    traits = tissue.traits
    amount = np.where(tissue.nuclei.positive, np.clip(traits.dab, 0.4, 1.5), 0.01).astype(np.float32)
    planes = tissue._draw(replace(traits, dab=amount))[1]
    return _glow(camera, tissue.mpp, planes[1], _GREY, blur_um=0.8, haze=0.03)


def _paint_segmentation(tissue: Tissue, _: np.random.Generator) -> Picture:
    """Paint positive nuclei red, negative ones blue, and green where one ends."""
    labels = tissue._draw(tissue.traits)[1][3]
    of = np.concatenate([[0], np.where(tissue.nuclei.positive, 1, 2)])[labels]
    picture: Picture = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[of]
    numbers = labels.astype(np.float32)
    picture[cv2.dilate(numbers, _BORDER) > cv2.erode(numbers, _BORDER)] = (0, 255, 0)
    return picture


def _undiminished(traits: Traits) -> Traits:
    """Return nuclei that hold all their hematoxylin, and no DAB."""
    return replace(traits, hematoxylin=traits.hematoxylin / traits.kept, dab=np.zeros_like(traits.dab))


def _glow(
    rng: np.random.Generator, mpp: float, plane: Plane, colour: Triple, *, blur_um: float, haze: float
) -> Picture:
    """Return the (H, W, 3) picture of what glows on black: blurred, with haze around it and noise."""
    plane = np.maximum(plane, 0)
    sharp = cv2.GaussianBlur(plane, (0, 0), max(blur_um / mpp, 0.5))
    light = sharp + np.float32(haze) * cv2.GaussianBlur(plane, (0, 0), 4 / mpp)
    grey = 255 * (1 - np.exp(-np.float32(rng.uniform(0.9, 1.3)) * light)) + np.float32(rng.uniform(4, 12))
    grey += rng.standard_normal(plane.shape, np.float32) * np.sqrt(grey) * np.float32(0.15)
    return np.asarray(np.clip(grey[..., None] * np.array(colour, np.float32) + 0.5, 0, 255), np.uint8)


_PAINTERS: dict[str, Callable[[Tissue, np.random.Generator], Picture]] = {
    "he": _paint_he,
    "ihc": _paint_ihc,
    "hematoxylin": _paint_hematoxylin,
    "dapi": _paint_dapi,
    "lap2": _paint_lap2,
    "marker": _paint_marker,
    "segmentation": _paint_segmentation,
}

STAINS = tuple(_PAINTERS)
"""Hematoxylin and eosin; Ki67 in DAB; its counterstain alone; three fluorescences; classes of nuclei as colours."""
