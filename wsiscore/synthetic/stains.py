"""The stains in which a tissue can be rendered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Appearance, Triple, dye
from wsiscore.synthetic.camera import photograph
from wsiscore.synthetic.field import FieldTruth
from wsiscore.synthetic.ground import Flow, Layout, Plane, add_dirt, add_ground
from wsiscore.synthetic.nuclei import Nuclei, Traits, draw_nuclei

__all__ = ["STAINS", "Tissue"]

Picture = npt.NDArray[np.uint8]

_GREY, _GREEN = (1.0, 1.0, 1.0), (0.12, 1.0, 0.25)
_BORDER = np.ones((3, 3), np.uint8)  # boundaries are 1 px wide on either side


@dataclass(frozen=True, slots=True)
class Tissue:
    """A field without its stain. Rendering is deterministic: the same stain gives the same pixels.

    Parameters
    ----------
    shape
        Height and width in pixels.
    mpp
        Micrometres per pixel.
    appearance
        Parameters of the IHC; other stains use those that apply, such as the camera's.
    layout, flow, nuclei, traits
        Tumour and glass, fibres, nuclei and their traits.
    seed
        Seed of the rendering.
    """

    shape: tuple[int, int]
    mpp: float
    appearance: Appearance
    layout: Layout
    flow: Flow
    nuclei: Nuclei
    traits: Traits
    seed: int

    def render(self, stain: str) -> Picture:
        """Return the (H, W, 3) picture, 0..255, in a stain of `STAINS`."""
        return _RENDERERS[stain](self, np.random.default_rng([self.seed, 1 + STAINS.index(stain)]))

    def truth(self) -> FieldTruth:
        """Return the nuclei whose centre lies in the field, and the label map."""
        n, nuclei = self.nuclei.n_inside, self.nuclei
        return FieldTruth(
            labels=self._draw(self.traits)[1][3],
            x_um=nuclei.x[:n] * self.mpp,
            y_um=nuclei.y[:n] * self.mpp,
            positive=nuclei.positive[:n],
            kind=nuclei.kind[:n],
        )

    def _draw(self, traits: Traits) -> tuple[np.random.Generator, tuple[Plane, Plane, Plane, npt.NDArray[np.int32]]]:
        """Return the random generator after the drawing, and the planes of `draw_nuclei` for these traits."""
        rng = np.random.default_rng(self.seed)
        return rng, draw_nuclei(rng, self.shape, self.mpp, self.nuclei, traits)

    def _ground(
        self, rng: np.random.Generator, appearance: Appearance, body: Plane, brown: Plane, bare: Plane
    ) -> Plane:
        """Add the background to two dyes; return the colourless density."""
        n = self.nuclei.n_inside
        cells = (
            self.nuclei.y[:n].astype(np.intp),
            self.nuclei.x[:n].astype(np.intp),
            self.nuclei.positive[:n],
        )
        return add_ground(rng, self.mpp, appearance, self.layout, self.flow, cells, body, brown, bare)


def _render_ihc(tissue: Tissue, camera: np.random.Generator) -> Picture:
    appearance = tissue.appearance
    rng, (hematoxylin, dab, bare, _) = tissue._draw(tissue.traits)
    residual = tissue._ground(rng, appearance, hematoxylin, dab, bare)
    add_dirt(rng, tissue.mpp, appearance, tissue.layout, hematoxylin, dab, residual)
    return photograph(
        camera, tissue.mpp, appearance, ((hematoxylin, appearance.hematoxylin), (dab, appearance.dab)), residual
    )


def _render_hematoxylin(tissue: Tissue, camera: np.random.Generator) -> Picture:
    appearance = tissue.appearance
    rng, (hematoxylin, unused, bare, _) = tissue._draw(_without_dab(tissue.traits))
    residual = tissue._ground(rng, appearance, hematoxylin, unused, bare)
    add_dirt(rng, tissue.mpp, appearance, tissue.layout, hematoxylin, unused, residual)
    return photograph(camera, tissue.mpp, appearance, ((hematoxylin, appearance.hematoxylin),), residual)


def _render_he(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Render hematoxylin and eosin: dark nuclei, pink fibres, cytoplasm between pink and violet."""
    violet = dye(camera, (0.52, 0.76, 0.38), (0.61, 0.73, 0.31), camera.random())
    pink: Triple = dye(camera, (0.18, 0.91, 0.37), (0.30, 0.83, 0.46), camera.random())
    level = camera.uniform(238, 247)
    appearance = replace(
        tissue.appearance,
        glass=(level, level - camera.uniform(0, 4), level),
        stray=min(tissue.appearance.stray, 0.03),
        cytoplasm_od=float(camera.uniform(0.15, 0.25)),
        stroma_od=float(camera.uniform(0.16, 0.27)),
        texture=float(camera.uniform(0.3, 0.5)),
        refraction=0.01,
        background_od=0.0,
        blush_od=0.0,
    )
    full = _without_dab(tissue.traits)
    strength = np.float32(camera.uniform(0.45, 0.65) / max(tissue.appearance.nuclear_od, 0.1))
    rng, (hematoxylin, unused, bare, _) = tissue._draw(
        replace(full, hematoxylin=full.hematoxylin * strength, hollow=np.clip(full.hollow, 0.2, 0.6))
    )
    eosin = np.zeros(tissue.shape, np.float32)
    residual = tissue._ground(rng, appearance, eosin, unused, bare)
    hematoxylin += eosin * tissue.layout.tumour * np.float32(camera.uniform(0.2, 0.6))
    add_dirt(rng, tissue.mpp, appearance, tissue.layout, hematoxylin, unused, residual)
    return photograph(camera, tissue.mpp, appearance, ((hematoxylin, violet), (eosin, pink)), residual)


def _render_dapi(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Render DAPI: fluorescence of the whole nucleus, weaker in the nucleoli."""
    traits = _without_dab(tissue.traits)
    nucleoli = traits.nucleoli.copy()
    nucleoli[:, :, 3] *= -0.4
    amount = np.sqrt(traits.hematoxylin / max(tissue.appearance.nuclear_od, 0.05)) * 0.55
    traits = replace(
        traits, hematoxylin=amount, hollow=traits.hollow * 0.5, grain=traits.grain * 0.9, nucleoli=nucleoli
    )
    return _fluorescence(camera, tissue.mpp, tissue._draw(traits)[1][0], _GREY, blur_um=0.35, scatter=0.07)


def _render_lap2(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Render lamina-associated polypeptide 2: fluorescence of nuclear envelopes of different intensity."""
    traits, n = tissue.traits, len(tissue.traits.envelope)
    nucleoli = traits.nucleoli.copy()
    nucleoli[:, :, 3] = 0
    traits = replace(
        traits,
        hematoxylin=(0.45 * np.exp(camera.normal(0, 0.5, n))).astype(np.float32),
        hollow=np.full(n, 0.9, np.float32),
        envelope=camera.uniform(1.0, 2.5, n).astype(np.float32),
        grain=np.full(n, 0.6, np.float32),
        nucleoli=nucleoli,
    )
    return _fluorescence(camera, tissue.mpp, tissue._draw(traits)[1][0], _GREEN, blur_um=0.2, scatter=0.02)


def _render_marker(tissue: Tissue, camera: np.random.Generator) -> Picture:
    """Render fluorescent Ki67: positive nuclei only."""
    traits = tissue.traits
    amount = np.where(tissue.nuclei.positive, np.clip(traits.dab, 0.4, 1.5), 0.01).astype(np.float32)
    planes = tissue._draw(replace(traits, dab=amount))[1]
    return _fluorescence(camera, tissue.mpp, planes[1], _GREY, blur_um=0.8, scatter=0.03)


def _render_segmentation(tissue: Tissue, _: np.random.Generator) -> Picture:
    """Render the class mask: positive nuclei red, negative ones blue, boundaries green."""
    labels = tissue._draw(tissue.traits)[1][3]
    class_of = np.concatenate([[0], np.where(tissue.nuclei.positive, 1, 2)])[labels]
    picture: Picture = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[class_of]
    numbers = labels.astype(np.float32)
    picture[cv2.dilate(numbers, _BORDER) > cv2.erode(numbers, _BORDER)] = (0, 255, 0)
    return picture


def _without_dab(traits: Traits) -> Traits:
    """Return the traits with all hematoxylin and no DAB."""
    return replace(traits, hematoxylin=traits.hematoxylin / traits.kept, dab=np.zeros_like(traits.dab))


def _fluorescence(
    rng: np.random.Generator, mpp: float, plane: Plane, colour: Triple, *, blur_um: float, scatter: float
) -> Picture:
    """Return the (H, W, 3) picture of fluorescence on black, with blur, scattered light and noise."""
    plane = np.maximum(plane, 0)
    sharp = cv2.GaussianBlur(plane, (0, 0), max(blur_um / mpp, 0.5))
    light = sharp + np.float32(scatter) * cv2.GaussianBlur(plane, (0, 0), 4 / mpp)
    grey = 255 * (1 - np.exp(-np.float32(rng.uniform(0.9, 1.3)) * light)) + np.float32(rng.uniform(4, 12))
    grey += rng.standard_normal(plane.shape, np.float32) * np.sqrt(grey) * np.float32(0.15)
    return np.asarray(np.clip(grey[..., None] * np.array(colour, np.float32) + 0.5, 0, 255), np.uint8)


_RENDERERS: dict[str, Callable[[Tissue, np.random.Generator], Picture]] = {
    "he": _render_he,
    "ihc": _render_ihc,
    "hematoxylin": _render_hematoxylin,
    "dapi": _render_dapi,
    "lap2": _render_lap2,
    "marker": _render_marker,
    "segmentation": _render_segmentation,
}

STAINS = tuple(_RENDERERS)
"""H&E; Ki67 IHC; its hematoxylin alone; fluorescence of DAPI, LAP2 and Ki67; class mask."""
