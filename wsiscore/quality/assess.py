"""What the measures of all tiles say of a slide: flags, the area affected, and what to do.

The limits were chosen on rendered slides, spoilt on purpose, and on real fields of six laboratories;
``benchmarks/quality.py`` repeats that, and docs/quality.md says how far they lie from either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import shapely

from wsiscore.quality.measures import MEASURES
from wsiscore.regions import Roi
from wsiscore.tiles import TileGrid

__all__ = ["ADVICE", "LIMITS", "Finding", "Quality", "assess"]

LIMITS: Final = {
    "focus": -1.36,
    "pen": 0.03,
    "fold": 0.05,
    "hematoxylin": 0.205,
    "stain": 0.27,
    "ground": 0.03,
    "least_ground": 0.005,
    "background": 0.8,
    "pink": 0.33,
    "size_um": 12.0,
    "least_size_um": 3.0,
    "magnified_focus": -0.9,
    "reduced_focus": 0.0,
}
"""Limits of the measures: of a tile for focus, pen and fold, of the slide for the others."""

ADVICE: Final = {
    "not_h_dab": "Score a section stained with hematoxylin and DAB.",
    "mpp_implausible": "Check the micrometres per pixel, and give the right ones with --mpp.",
    "pale": "Compare with a control section, and stain again.",
    "over_stained": "Compare with a control section, and stain again with less.",
    "pen": "Draw the regions around the ink, or clean the glass and scan again.",
    "blur": "Scan again in focus, or draw the regions around the blurred places.",
    "fold": "Draw the regions around the folds.",
    "tiles_missing": "Fetch the file again, or scan again.",
}
"""What to do about each flag."""

_LEAST_FRACTION = {"blur": 0.3, "pen": 0.002, "fold": 0.01}  # of the tissue in affected tiles, for a flag
_TYPICAL, _STRONG = 0.5, 0.75  # quantiles of the tiles by their tissue: for size and hue, and for strength
_NO_TISSUE = 0.05  # weight of a tile without tissue beside one full of it: a slide too pale to show any still counts

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a slide.

    Parameters
    ----------
    flag
        A word of `wsiscore.analysis.flags`.
    found
        What was measured and what was wanted, in words.
    area_mm2
        Area of the regions in the affected tiles; all of it where the flag is of the whole slide.
    """

    flag: str
    found: str
    area_mm2: float

    @property
    def advice(self) -> str:
        """What to do."""
        return ADVICE[self.flag]


@dataclass(frozen=True, slots=True)
class Quality:
    """The quality of a slide.

    Parameters
    ----------
    grid
        Of the tiles.
    tiles
        Each measure by its name, (rows, cols), nan where no tile was measured.
    affected
        The tiles beyond the limit by the name of their flag, (rows, cols).
    slide
        Each measure of the whole slide: the mean of tiles by their tissue, or for strength and size a quantile. And
        ``ground``, the upper quartile of the background.
    area_mm2
        Area of the regions.
    findings
        What is wrong, in the order of `ADVICE`.
    """

    grid: TileGrid
    tiles: dict[str, npt.NDArray[np.float32]]
    affected: dict[str, Mask]
    slide: dict[str, float]
    area_mm2: float
    findings: tuple[Finding, ...]

    @property
    def flags(self) -> tuple[str, ...]:
        """The words of what is wrong."""
        return tuple(finding.flag for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return what JSON can hold: flags, findings with area and advice, the slide's measures and the limits."""
        return {
            "flags": list(self.flags),
            "findings": [
                {"flag": each.flag, "found": each.found, "area_mm2": each.area_mm2, "advice": each.advice}
                for each in self.findings
            ],
            "area_mm2": self.area_mm2,
            "measures": {name: value if np.isfinite(value) else None for name, value in self.slide.items()},
            "limits": dict(LIMITS),
        }


def assess(
    measures: npt.NDArray[np.float32], grid: TileGrid, rois: Sequence[Roi], unread: Mask | None = None
) -> Quality:
    """Assess the quality of a slide within its regions.

    Parameters
    ----------
    measures
        (rows, cols, len(MEASURES)), nan where no tile was measured.
    grid
        Of the tiles.
    rois
        Where cells are counted; what lies outside does not matter.
    unread
        (rows, cols), tiles that could not be read.
    """
    tiles = {name: measures[..., number] for number, name in enumerate(MEASURES)}
    area = _area_um2(grid, rois, np.isfinite(tiles["tissue"]) | (False if unread is None else unread))
    weight = area * np.fmax(np.nan_to_num(tiles["tissue"]), _NO_TISSUE) * np.isfinite(tiles["tissue"])
    slide = {
        name: _mean(tiles[name], weight) for name in ("tissue", "focus", "dab", "background", "pink", "pen", "fold")
    }
    slide |= {name: _quantile(tiles[name], weight, _STRONG) for name in ("hematoxylin", "stain")}
    slide["size_um"] = _quantile(tiles["size_um"], weight, _TYPICAL)
    slide = {name: slide[name] for name in MEASURES} | {"ground": _quantile(tiles["background"], weight, _STRONG)}
    affected = {
        "blur": tiles["focus"] < LIMITS["focus"],
        "pen": tiles["pen"] > LIMITS["pen"],
        "fold": tiles["fold"] > LIMITS["fold"],
    }
    total_mm2 = float(area.sum()) / 1e6
    findings = [Finding(flag, found, total_mm2) for flag, found in _of_slide(slide)]
    for flag, mask in affected.items():
        if weight.sum() and float(weight[mask].sum() / weight.sum()) >= _LEAST_FRACTION[flag]:
            area_mm2 = float(area[mask].sum()) / 1e6
            findings.append(
                Finding(flag, f"{_WORDS[flag]} in {100 * area_mm2 / total_mm2:.0f} % of the area", area_mm2)
            )
    if unread is not None and area[unread].sum():
        lost = float(area[unread].sum()) / 1e6
        findings.append(Finding("tiles_missing", f"{int((unread & (area > 0)).sum())} tiles could not be read", lost))
    order = list(ADVICE)
    found = tuple(sorted(findings, key=lambda finding: order.index(finding.flag)))
    return Quality(grid, tiles, affected, slide, total_mm2, found)


_WORDS = {"blur": "out of focus", "pen": "ink of a pen", "fold": "dark without a gap, as in a fold,"}


def _of_slide(slide: dict[str, float]) -> list[tuple[str, str]]:
    """Return the flags of the whole slide, each with what was found."""
    limits, found = LIMITS, []
    if slide["pink"] > limits["pink"]:
        wanted = f"at most {100 * limits['pink']:.0f} % is wanted"
        found.append(("not_h_dab", f"{100 * slide['pink']:.0f} % of the tissue is pink to violet, {wanted}"))
    magnified = slide["size_um"] > limits["size_um"] and slide["focus"] < limits["magnified_focus"]
    reduced = slide["size_um"] < limits["least_size_um"] or slide["focus"] > limits["reduced_focus"]
    if magnified or reduced:
        wanted = f"{limits['least_size_um']:g} to {limits['size_um']:g} µm are wanted"
        seen = f"what is stained is {slide['size_um']:.1f} µm wide, with a focus of {slide['focus']:.2f}"
        found.append(("mpp_implausible", f"{seen}; {wanted}, and a focus of at most {limits['reduced_focus']:g}"))
    if slide["hematoxylin"] < limits["hematoxylin"] or slide["stain"] < limits["stain"]:
        nuclei = f"{slide['hematoxylin']:.2f} of hematoxylin and {slide['stain']:.2f} in all"
        wanted = f"at least {limits['hematoxylin']:g} and {limits['stain']:g} are wanted"
        found.append(("pale", f"the darkest nuclei have an optical density of {nuclei}, {wanted}"))
    elif limits["least_ground"] < slide["ground"] < limits["ground"]:  # less is glass
        seen = f"between the nuclei the tissue has an optical density of {slide['ground']:.2f}"
        found.append(("pale", f"{seen}, at least {limits['ground']:g} is wanted"))
    if slide["background"] > limits["background"]:
        wanted = f"at most {limits['background']:g} is wanted"
        found.append(("over_stained", f"the median optical density is {slide['background']:.2f}, {wanted}"))
    return found


def _area_um2(grid: TileGrid, rois: Sequence[Roi], tiles: Mask) -> Values:
    """Return the area of the regions in each of these tiles, (rows, cols)."""
    area = np.zeros((grid.rows, grid.cols))
    places = np.argwhere(tiles)
    if not len(places):
        return area
    union = shapely.union_all([roi.outline_um for roi in rois])
    shapely.prepare(union)
    top, left = (places[:, axis] * grid.core_px for axis in (0, 1))
    right, bottom = np.minimum(left + grid.core_px, grid.width_px), np.minimum(top + grid.core_px, grid.height_px)
    cores = shapely.box(*(np.asarray(side) * grid.mpp for side in (left, top, right, bottom)))
    whole = shapely.contains_properly(union, cores)
    own = shapely.area(cores)
    own[~whole] = shapely.area(shapely.intersection(union, cores[~whole]))
    area[places[:, 0], places[:, 1]] = own
    return area


def _mean(values: npt.NDArray[np.float32], weight: Values) -> float:
    known = np.isfinite(values) & (weight > 0)
    return float(np.average(values[known], weights=weight[known])) if known.any() else float("nan")


def _quantile(values: npt.NDArray[np.float32], weight: Values, quantile: float) -> float:
    """Return a weighted quantile of the finite values; nan if there is none."""
    known = np.isfinite(values) & (weight > 0)
    if not known.any():
        return float("nan")
    order = np.argsort(values[known], kind="stable")
    summed = np.cumsum(weight[known][order])
    return float(values[known][order][np.searchsorted(summed, quantile * summed[-1])])
