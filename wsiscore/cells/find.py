"""Cells from a mosaic, by the rules it was made with or by others."""

from __future__ import annotations

from collections.abc import Sequence

from wsiscore.cells.rules import BLOCK_PX, KINDS, Rules
from wsiscore.cells.table import Cells
from wsiscore.errors import MosaicError
from wsiscore.map_codes import DAB_CHANNEL
from wsiscore.mosaic import Mosaic
from wsiscore.regions import Roi, scored

__all__ = ["find_cells", "rules_of"]


def find_cells(
    mosaic: Mosaic, rois: Sequence[Roi] | None = None, *, rules: Rules | None = None, block_px: int = BLOCK_PX
) -> Cells:
    """Find the cells of a mosaic that lie in the regions.

    Parameters
    ----------
    mosaic
        Maps of one of `wsiscore.cells.rules.KINDS`, with no tile left to do.
    rois
        Where cells count; by default where the mosaic was made.
    rules
        By default those the mosaic was made with.
    block_px
        Side of the blocks that are read at a time. It bounds the memory and changes nothing else.

    Returns
    -------
    Cells
        Ordered by y, then x; each with the index of the first region that contains it.

    Raises
    ------
    MosaicError
        If tiles are missing, or the mosaic is a picture.
    """
    rules = rules or rules_of(mosaic)
    if missing := mosaic.missing():
        raise MosaicError(f"{mosaic.path} lacks {missing} tiles; run the same `wsiscore infer` again to finish it")
    cells, _ = rules.find(mosaic, block_px=block_px)
    return cells.in_rois(scored(mosaic.tiles.rois if rois is None else rois))


def rules_of(mosaic: Mosaic) -> Rules:
    """Return the rules a mosaic was made with; MosaicError if it has none, or is of a kind that is not known here."""
    output, rules = mosaic.about["output"], mosaic.about.get("rules")
    for kind in KINDS:
        if kind.output == output:
            if missing := sorted({*kind.channels, DAB_CHANNEL} - set(mosaic.channels)):
                raise MosaicError(f"{mosaic.path} lacks the maps {', '.join(missing)}; infer again")
            try:
                return kind.from_json(rules if isinstance(rules, dict) else {})
            except ValueError as error:
                raise MosaicError(f"{mosaic.path} has rules that are none ({error}); infer again") from error
    if output == "image":
        raise MosaicError(f"{mosaic.path} is a virtual stain, not a map of cells; score it as a slide")
    kinds = ", ".join(kind.output for kind in KINDS)
    raise MosaicError(f"{mosaic.path} holds maps of the kind {output!r:.40}, wanted {kinds}; infer again")
