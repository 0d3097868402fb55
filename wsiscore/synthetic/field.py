"""One field of a Ki67 slide and the truth about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Look
from wsiscore.synthetic.camera import photograph
from wsiscore.synthetic.ground import Flow, Layout, add_dirt, add_ground
from wsiscore.synthetic.nuclei import KINDS, Traits, draw_nuclei, place_nuclei

__all__ = ["REACH_UM", "Field", "Known", "render_field"]

REACH_UM = 12.0  # nuclei up to here outside a field still reach into it

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The truth about a picture; the columns have one entry a nucleus whose centre lies in it.

    Parameters
    ----------
    labels
        (H, W): row number + 1 of the nucleus there, 0 for none; numbers beyond the rows are nuclei whose
        centre lies outside.
    x_um, y_um
        Centre, from the picture's top left.
    positive
        Whether the nucleus took DAB.
    kind
        Index into `KINDS`.
    """

    labels: npt.NDArray[np.int32]
    x_um: Column
    y_um: Column
    positive: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.int8]

    @property
    def counted(self) -> npt.NDArray[np.bool_]:
        """Which nuclei the index is of: those of the tumour."""
        return np.equal(self.kind, KINDS.index("tumour"))

    @property
    def ki67_index(self) -> float:
        """Positive tumour nuclei in percent of all; nan without any."""
        counted = self.positive[self.counted]
        return 100 * float(counted.mean()) if len(counted) else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Field(Known):
    """A picture whose every nucleus is known.

    Parameters
    ----------
    rgb
        (H, W, 3) in 0..255.
    """

    rgb: npt.NDArray[np.uint8]


def render_field(
    rng: np.random.Generator,
    height_px: int,
    width_px: int,
    mpp: float,
    *,
    look: Look,
    index: float,
    layout: Layout | None = None,
    rim_um: float | None = None,
) -> Field:
    """Paint one field.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same pixels.
    height_px, width_px
        Size of the picture.
    mpp
        Micrometres per pixel.
    look
        The slide it is of.
    index
        Positive tumour nuclei in percent, met to the nearest nucleus.
    layout
        Where tumour and glass are; drawn if not given.
    rim_um
        Keep nuclei this far from the edge, so that mirrored copies join without a cut one.
        By default nuclei are cut by the edge like everything else.

    Returns
    -------
    Field
        The picture, its label map and its nuclei.
    """
    shape = height_px, width_px
    layout = layout or Layout.random(rng, height_px, width_px, mpp)
    flow = Flow.random(rng, shape, mpp)
    nuclei = place_nuclei(rng, shape, mpp, look, layout, flow, index, -REACH_UM if rim_um is None else rim_um)
    traits = Traits.random(rng, look, nuclei)
    hematoxylin, dab, bare, labels = draw_nuclei(rng, shape, mpp, nuclei, traits)
    n = nuclei.n_inside
    x, y, positive, kind = nuclei.x[:n], nuclei.y[:n], nuclei.positive[:n], nuclei.kind[:n]
    cells = y.astype(np.intp), x.astype(np.intp), positive
    residual = add_ground(rng, mpp, look, layout, flow, cells, hematoxylin, dab, bare)
    add_dirt(rng, mpp, look, layout, hematoxylin, dab, residual)
    rgb = photograph(rng, mpp, look, ((hematoxylin, look.hematoxylin), (dab, look.dab)), residual)
    return Field(rgb=rgb, labels=labels, x_um=x * mpp, y_um=y * mpp, positive=positive, kind=kind)
