"""All that is found from the counted cells of a slide beyond their number."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from wsiscore.analysis.blocks import BlockSize, block_sizes, correlation_um
from wsiscore.analysis.convention import ANY_BROWN, LIMITS, PLAINLY_BROWN, Convention, convention
from wsiscore.analysis.heterogeneity import HEXAGON_UM, hexagon_entropy
from wsiscore.analysis.protocols import CountedField, Protocols, protocols, zone
from wsiscore.cells.rules import CenterRules
from wsiscore.cells.table import Cells

__all__ = ["Analysis", "analyse"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the report of a slide shows of its cells.

    Parameters
    ----------
    block_sizes
        The design effect by side of block.
    correlation
        Over what distance the local index is alike, in micrometres.
    convention
        The index by limit of DAB optical density; None where no cell has one.
    protocols
        The index by each protocol.
    entropy
        Of the local index in hexagons, in bits; nan for too small an area.
    """

    block_sizes: tuple[BlockSize, ...]
    correlation: float
    convention: Convention | None
    protocols: Protocols
    entropy: float

    def flags(self, cutoff: float) -> tuple[str, ...]:
        """Return the flags for a cutoff in percent."""
        found = []
        if self.convention and self.convention.decides(cutoff):
            found.append("limit_decides")
        if self.protocols.differ(cutoff):
            found.append("hot_spot_differs")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return ``convention``, ``protocols`` and ``heterogeneity``, JSON-ready: None for what is undefined."""
        curve, found = self.convention, self.protocols
        hot = found.hot_spot
        return {
            "convention": curve
            and {
                "limits": list(LIMITS),
                "index": list(curve.index),
                "used": curve.used,
                "used_is_rule": curve.used_is_rule,
                "span": {"limits": [PLAINLY_BROWN, ANY_BROWN], "index": list(curve.span)},
            },
            "protocols": {
                "global": _number(found.global_index),
                "zone": zone(found.global_index),
                "unweighted_4x100": _number(found.unweighted),
                "weighted_4x100": _number(found.weighted),
                "fields": [_field(field) for field in found.fields],
                "hot_spot": hot and {**_field(hot.field), "chance": hot.chance, "above_chance": hot.above_chance},
            },
            "heterogeneity": {
                "block_sizes": [
                    {**asdict(size), "design_effect": _number(size.design_effect)} for size in self.block_sizes
                ],
                "correlation_um": self.correlation,
                "hexagon_um": HEXAGON_UM,
                "hexagon_entropy_bits": _number(self.entropy),
            },
        }


def analyse(cells: Cells, rules: CenterRules | None = None) -> Analysis:
    """Return the analysis of the counted cells of a slide.

    Parameters
    ----------
    cells
        The cells inside the regions.
    rules
        By which they were classified, if by a limit of DAB optical density.
    """
    return Analysis(
        block_sizes(cells),
        correlation_um(cells),
        convention(cells, rules),
        protocols(cells),
        hexagon_entropy(cells),
    )


def _field(field: CountedField) -> dict[str, Any]:
    return {**asdict(field), "index": field.index}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
