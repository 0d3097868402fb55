"""One rendered field of a Ki67 slide, with its nuclei."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.camera import photograph
from wsiscore.synthetic.ground import Flow, Layout, add_dirt, add_ground
from wsiscore.synthetic.nuclei import KINDS, Traits, draw_nuclei, place_nuclei

__all__ = ["MARGIN_UM", "FieldTruth", "RenderedField", "render_field"]

MARGIN_UM = 12.0  # nuclei centred up to here outside a field overlap it

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldTruth:
    """The nuclei of a picture; columns have one entry for each nucleus whose centre lies in the picture.

    Parameters
    ----------
    labels
        (H, W): row number + 1 of the nucleus at a pixel, 0 for none. Numbers beyond the rows are nuclei whose
        centre lies outside.
    x_um, y_um
        Centre in micrometres from the picture's top left.
    positive
        Whether the nucleus is stained with DAB.
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
        """Which nuclei count for the index: those of the tumour."""
        return np.equal(self.kind, KINDS.index("tumour"))

    @property
    def ki67_index(self) -> float:
        """Positive in percent of all tumour nuclei; nan if there is none."""
        counted = self.positive[self.counted]
        return 100 * float(counted.mean()) if len(counted) else float("nan")


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedField(FieldTruth):
    """A rendered picture with its nuclei.

    Parameters
    ----------
    rgb
        (H, W, 3), 0..255.
    """

    rgb: npt.NDArray[np.uint8]


def render_field(
    rng: np.random.Generator,
    height_px: int,
    width_px: int,
    mpp: float,
    *,
    appearance: Appearance,
    index: float,
    layout: Layout | None = None,
    margin_um: float | None = None,
) -> RenderedField:
    """Render one field.

    Parameters
    ----------
    rng
        Random generator; the same state gives the same pixels.
    height_px, width_px
        Size of the picture.
    mpp
        Micrometres per pixel.
    appearance
        Parameters of the slide.
    index
        Ki67 index in percent, to the nearest nucleus.
    layout
        Tumour and empty glass; by default sampled.
    margin_um
        Distance of all nuclei from the edge, so that mirrored copies join without a cut nucleus. By default the
        edge cuts nuclei.

    Returns
    -------
    RenderedField
        The picture, its label map and its nuclei.
    """
    shape = height_px, width_px
    layout = layout or Layout.random(rng, height_px, width_px, mpp)
    flow = Flow.random(rng, shape, mpp)
    nuclei = place_nuclei(
        rng, shape, mpp, appearance, layout, flow, index, -MARGIN_UM if margin_um is None else margin_um
    )
    traits = Traits.random(rng, appearance, nuclei)
    hematoxylin, dab, bare, labels = draw_nuclei(rng, shape, mpp, nuclei, traits)
    n = nuclei.n_inside
    x, y, positive, kind = nuclei.x[:n], nuclei.y[:n], nuclei.positive[:n], nuclei.kind[:n]
    cells = y.astype(np.intp), x.astype(np.intp), positive
    residual = add_ground(rng, mpp, appearance, layout, flow, cells, hematoxylin, dab, bare)
    add_dirt(rng, mpp, appearance, layout, hematoxylin, dab, residual)
    rgb = photograph(rng, mpp, appearance, ((hematoxylin, appearance.hematoxylin), (dab, appearance.dab)), residual)
    return RenderedField(rgb=rgb, labels=labels, x_um=x * mpp, y_um=y * mpp, positive=positive, kind=kind)
