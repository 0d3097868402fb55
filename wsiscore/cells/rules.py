"""How the maps of a mosaic become cells: one class a kind of output, whose fields are what a user may change.

The card of a model, the command line, the report and the pipeline iterate the fields of these classes. A new rule is
one field; a new kind of output one class here, listed in `KINDS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from wsiscore.cells.table import Cells
    from wsiscore.mosaic import Mosaic
    from wsiscore.regions import Region

__all__ = ["BLOCK_PX", "KINDS", "CenterRules", "ComponentRules", "Rules", "rule_fields", "rule_flag"]

BLOCK_PX = 1024
"""Side of the blocks of a mosaic that are read at a time."""


def rule(
    default: float | None,
    text: str,
    *,
    most: float,
    unit: str = "",
    least: float = 0.0,
    above_least: bool = False,
    omit_default: bool = False,
) -> Any:
    """Return a dataclass field for a rule.

    Parameters
    ----------
    default
        Its value where none is given; None if it is found on the slide.
    text
        What it is: a sentence for the help, without a full stop.
    least, most
        Its range, both included; with `above_least`, `least` is not.
    unit
        ``µm``, ``µm²``, or nothing for a number without one.
    omit_default
        Leave it out of JSON at its default, so that files written before the rule existed compare equal.
    """
    about = {"text": text, "unit": unit, "least": least, "most": most, "above": above_least, "omit": omit_default}
    return field(default=default, metadata=about)


@dataclass(frozen=True, slots=True)
class Rules(ABC):
    """How maps of one kind become cells.

    Raises
    ------
    ValueError
        If a field is not a number in its range.
    """

    output: ClassVar[str]
    """Name of the kind, as mosaics on disk have it."""
    channels: ClassVar[frozenset[str]]
    """Names of the maps that are needed."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """Names of further maps that are used where a model has them."""

    def __post_init__(self) -> None:
        for own in fields(self):
            value, about = getattr(self, own.name), own.metadata
            if value is None and own.default is None:
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool)
            low = number and (value > about["least"] if about["above"] else value >= about["least"])
            if not (low and value <= about["most"]):
                raise ValueError(f"{own.name} must be {_range_words(about)}, got {value}")

    @abstractmethod
    def pieces(self, mosaic: Mosaic, blocks: Iterable[Region]) -> list[Any]:
        """Return what each block of a mosaic holds of cells: what `find` joins, and what can be pickled."""

    @abstractmethod
    def find(
        self, mosaic: Mosaic, *, block_px: int = BLOCK_PX, pieces: Sequence[Any] | None = None
    ) -> tuple[Cells, Self]:
        """Find all cells of a mosaic.

        Parameters
        ----------
        mosaic
            The maps of `channels` and ``dab_od``, with no tile left to do.
        block_px
            Side of the blocks that are read at a time. It bounds the memory and changes nothing else.
        pieces
            Of all blocks of the mosaic, if they are known already.

        Returns
        -------
        The cells, ordered by y, then x, in no region yet, and the rules with what was found on the slide filled in.
        """

    def to_json(self) -> dict[str, float | None]:
        """Return the rules by name, JSON-ready."""
        values = {own.name: (getattr(self, own.name), own) for own in fields(self)}
        return {
            name: value for name, (value, own) in values.items() if not own.metadata["omit"] or value != own.default
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_json` was given; ValueError for a name or value that is not a rule of this kind."""
        if unknown := sorted(set(values) - {own.name for own in fields(cls)}):
            raise ValueError(f"{unknown[0]!r} is not a rule of {cls.output}")
        if missing := [own.name for own in fields(cls) if own.name not in values and not own.metadata["omit"]]:
            raise ValueError(f"the rule {missing[0]!r} is missing")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class CenterRules(Rules):
    """Cells are the local maxima of a map of cell centres; their class is the stronger class map there.

    Parameters
    ----------
    threshold
        What the centre map must exceed, in [0, 1].
    radius_um
        Half the side of the square in which a cell is the highest point, in micrometres.
    smooth_um
        Standard deviation of the Gaussian that smooths the centre map first, in micrometres; 0 for none. A large
        nucleus with two maxima is one cell after it.
    positive_od
        Optical density of DAB at and above which a cell is positive, above that of the ground; None for the stronger of
        the two class maps. What counts as positive is a convention between any brown, about 0.1, and plainly brown.
    sure
        With `positive_od`: positivity at and above which a cell is positive, and at and below 1 minus which it is
        negative, whatever its density, in [0.5, 1]. The limit decides in between; at 1 it decides alone.
    other
        Value of the map of nuclei other than the tumour's at and above which a nucleus is not the tumour's, in [0, 1].
    """

    output: ClassVar[str] = "centers"
    channels: ClassVar[frozenset[str]] = frozenset({"center", "positive", "negative"})
    optional: ClassVar[frozenset[str]] = frozenset({"other"})

    threshold: float = rule(0.5, "What the centre map must exceed to be a cell", most=1)
    radius_um: float = rule(
        3.0, "Half the side of the square in which a cell is the highest point", most=50, unit="µm", above_least=True
    )
    smooth_um: float = rule(
        0.0,
        "Standard deviation of the Gaussian that smooths the centre map first",
        most=20,
        unit="µm",
        omit_default=True,
    )
    positive_od: float | None = rule(
        None, "DAB optical density above the ground's, at and above which a cell is positive", omit_default=True, most=3
    )
    sure: float = rule(
        1.0,
        "Positivity from which on a cell is positive, and at 1 minus which negative, whatever its density of DAB",
        least=0.5,
        most=1,
        omit_default=True,
    )
    other: float = rule(
        0.7, "Value of the map of other nuclei at and above which one is not the tumour's", most=1, omit_default=True
    )

    def pieces(self, mosaic: Mosaic, blocks: Iterable[Region]) -> list[Any]:
        """Return the local maxima of each block."""
        from wsiscore.cells.maxima import maxima_of_blocks  # scipy, which a card does not need

        limits = {"threshold": self.threshold, "radius_um": self.radius_um, "smooth_um": self.smooth_um}
        return maxima_of_blocks(mosaic, blocks, **limits)

    def find(
        self, mosaic: Mosaic, *, block_px: int = BLOCK_PX, pieces: Sequence[Any] | None = None
    ) -> tuple[Cells, Self]:
        """Find all cells of a mosaic, as `Rules.find`."""
        from wsiscore.cells.maxima import cells_of_maxima  # scipy, which a card does not need

        pieces = self.pieces(mosaic, mosaic.blocks(block_px)) if pieces is None else pieces
        cells = cells_of_maxima(mosaic, pieces, radius_um=self.radius_um)
        if self.positive_od is not None:
            positivity = np.nan_to_num(cells.positivity, nan=0.5)  # where no class map shows anything
            return replace(cells, stained=self.are_positive(positivity, cells.dab_od), positivity=positivity), self
        return cells.select(cells.positivity >= 0), self

    def are_positive(
        self, positivity: npt.NDArray[np.floating], dab_od: npt.NDArray[np.floating]
    ) -> npt.NDArray[np.bool_]:
        """Return which cells are positive, by positivity in [0, 1] and density of DAB above the ground's."""
        return np.where(self.are_limited(positivity), dab_od >= (self.positive_od or 0.0), positivity >= 0.5)

    def are_limited(self, positivity: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
        """Return for which cells `positive_od` decides, by their positivity in [0, 1]."""
        if self.positive_od is None or self.sure == 1:
            return np.full(np.shape(positivity), self.positive_od is not None)
        return np.asarray((positivity < self.sure) & (positivity > 1 - self.sure))


@dataclass(frozen=True, slots=True)
class ComponentRules(Rules):
    """Cells are the connected components of the class maps, cut by a map of boundaries.

    Parameters
    ----------
    threshold
        What the sum of the positive and the negative map must exceed at each pixel of a cell, in [0, 1].
    boundary
        Largest value of the boundary map at a cell's pixel, in [0, 1].
    least_area_um2
        Area that a cell must exceed, in µm²; None finds it from the areas of all cells of the slide.
    """

    output: ClassVar[str] = "components"
    channels: ClassVar[frozenset[str]] = frozenset({"positive", "negative", "boundary"})

    threshold: float = rule(0.5, "What positive and negative map together must exceed at a cell's pixels", most=1)
    boundary: float = rule(80 / 255, "Largest value of the boundary map at a cell's pixels", most=1)
    least_area_um2: float | None = rule(
        None, "Area that a cell must exceed; found on the slide by default", most=10_000, unit="µm²"
    )

    def pieces(self, mosaic: Mosaic, blocks: Iterable[Region]) -> list[Any]:
        """Return the pieces of components in each block."""
        from wsiscore.cells.components import pieces_of_blocks  # scipy, which a card does not need

        return pieces_of_blocks(mosaic, blocks, threshold=self.threshold, boundary=self.boundary)

    def find(
        self, mosaic: Mosaic, *, block_px: int = BLOCK_PX, pieces: Sequence[Any] | None = None
    ) -> tuple[Cells, Self]:
        """Find all cells of a mosaic, as `Rules.find`; `least_area_um2` is filled in."""
        from wsiscore.cells.components import whole_cells  # scipy, which a card does not need

        pieces = self.pieces(mosaic, mosaic.blocks(block_px)) if pieces is None else pieces
        cells, least = whole_cells(mosaic, pieces, least_area_um2=self.least_area_um2)
        return cells, replace(self, least_area_um2=least)


KINDS: tuple[type[Rules], ...] = (CenterRules, ComponentRules)
"""Every kind of output from which cells are found."""


def rule_fields() -> dict[str, dict[str, Any]]:
    """Return every rule of every kind by name, with the metadata of its field; of equal names, the texts joined."""
    found: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        for own in fields(kind):
            before = found.get(own.name)
            text = f"{before['text']}; of {kind.output}: {own.metadata['text']}" if before else own.metadata["text"]
            found[own.name] = {**own.metadata, "text": text}
    return found


def rule_flag(name: str) -> str:
    """Return the option of the command line for a rule: its name without the unit."""
    return "--" + name.removesuffix("_um").removesuffix("_um2").replace("_", "-")


def _range_words(about: Mapping[str, Any]) -> str:
    unit = f" of {about['unit']}" if about["unit"] else ""
    return f"a number{unit} in {'(' if about['above'] else '['}{about['least']:g}, {about['most']:g}]"
