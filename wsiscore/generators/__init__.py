"""Generator families: one module each, found by file name or entry point, named nowhere else.

A family turns a batch of tiles into maps with named channels. What the rest of the program does with the maps
follows from those names alone (`GeneratorSpec.output`). A package adds a family with one module and one entry
point in the group ``wsiscore.generators``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import numpy.typing as npt

from wsiscore.errors import ModelError

__all__ = [
    "CellRules",
    "Family",
    "Generator",
    "GeneratorSpec",
    "Maps",
    "Recipe",
    "SlideAdaptive",
    "TargetRules",
    "family",
    "names",
    "option",
]

GROUP = "wsiscore.generators"
Maps = Literal["needed", "all"]
"""Which maps a model computes: those its kind of output needs, or all it has."""
Output = Literal["centers", "components", "image"]
"""What a generator's channels are: maps of cell centres, maps of whole cells, or a picture."""
_NEEDED: dict[Output, frozenset[str]] = {
    "centers": frozenset({"center", "positive", "negative"}),
    "components": frozenset({"positive", "negative", "boundary"}),
    "image": frozenset({"red", "green", "blue"}),
}


@dataclass(frozen=True, slots=True)
class CellRules:
    """How maps become cells; the defaults come from a model's card, the command line may change them.

    Parameters
    ----------
    threshold
        What a cell must exceed, in [0, 1]: of centers in the centre map, of components in the sum of the positive and
        the negative map at each pixel.
    radius_um
        Of centers: half the side of the square in which a cell is the highest point, in micrometres.
    smooth_um
        Of centers: standard deviation of the Gaussian that smooths the centre map first, in micrometres; 0 for none.
        A large nucleus with two hills is one after it.
    boundary
        Of components: most that the boundary map may be at a cell's pixel, in [0, 1].
    least_area_um2
        Of components: area that a cell must exceed, in µm²; None finds it from the areas of all of the slide.
    """

    threshold: float = 0.5
    radius_um: float = 3.0
    smooth_um: float = 0.0
    boundary: float = 80 / 255
    least_area_um2: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"the threshold lies in [0, 1], got {self.threshold}")
        if not self.radius_um > 0:
            raise ValueError(f"the radius is a positive number of micrometres, got {self.radius_um}")
        if not self.smooth_um >= 0:
            raise ValueError(f"the smoothing is a number of micrometres, 0 or more, got {self.smooth_um}")
        if not 0 <= self.boundary <= 1:
            raise ValueError(f"the boundary's limit lies in [0, 1], got {self.boundary}")
        if self.least_area_um2 is not None and not self.least_area_um2 >= 0:
            raise ValueError(f"the least area is a number of µm², 0 or more, got {self.least_area_um2}")

    def of(self, output: Output) -> dict[str, float | None]:
        """Return by name the rules that this kind of output heeds, JSON-ready."""
        if output == "components":
            return {"threshold": self.threshold, "boundary": self.boundary, "least_area_um2": self.least_area_um2}
        smooth = {"smooth_um": self.smooth_um} if self.smooth_um else {}  # older cards and mosaics know nothing of it
        return {"threshold": self.threshold, "radius_um": self.radius_um, **smooth}


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """What a generator reads and gives; callers ask this and never the family's name.

    Parameters
    ----------
    family
        The module that runs it.
    channels
        Names of the output maps, in order: those that one kind of output needs, and any others beside them.
    mpp
        Micrometres per pixel it reads and writes.
    tile_px
        Side of the square tile it reads by default.
    margin_px
        Rim of a tile that is read but not kept.
    multiple_px
        A tile's side must be a multiple of this.
    dtype
        How the mosaic stores the maps: ``float16`` in [0, 1], or ``uint8`` in 0..255 for images.
    rules
        Defaults for turning the maps into cells.
    """

    family: str
    channels: tuple[str, ...]
    mpp: float
    tile_px: int = 256
    margin_px: int = 32
    multiple_px: int = 16
    dtype: Literal["float16", "uint8"] = "float16"
    rules: CellRules = CellRules()

    def __post_init__(self) -> None:
        told = "/".join(self.channels)
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels {told} name a map twice")
        if not (kinds := self._kinds()):
            known = " or ".join("/".join(sorted(needed)) for needed in _NEEDED.values())
            raise ValueError(f"channels {told} mean nothing here; wanted {known}")
        if len(kinds) > 1:
            raise ValueError(f"channels {told} mean {' and '.join(kinds)} at once; rename some of them")
        if self.tile_px % self.multiple_px:
            raise ValueError(f"tiles of {self.tile_px} px are not a multiple of {self.multiple_px} px")
        if not 0 <= 2 * self.margin_px < self.tile_px:
            raise ValueError(f"a margin of {self.margin_px} px leaves nothing of a {self.tile_px} px tile")

    def _kinds(self) -> list[Output]:
        return [output for output, needed in _NEEDED.items() if needed <= set(self.channels)]

    @property
    def output(self) -> Output:
        """What the channels are: cell centres, or whole cells with their boundaries, by class; or an RGB picture."""
        return self._kinds()[0]

    @property
    def needed(self) -> tuple[str, ...]:
        """The channels that this kind of output needs, in order; the others are there to look at."""
        return tuple(channel for channel in self.channels if channel in _NEEDED[self.output])

    def check(self, tiles: npt.NDArray[Any]) -> None:
        """Raise a ValueError unless `tiles` is what a generator takes: (B, 3, H, W) uint8, sides as declared."""
        if tiles.dtype != np.uint8:
            raise ValueError(f"tiles are uint8 RGB in 0..255, got {tiles.dtype}")
        if tiles.ndim != 4 or tiles.shape[1] != 3:
            raise ValueError(f"tiles have the shape (B, 3, H, W), got {tiles.shape}")
        if any(side == 0 or side % self.multiple_px for side in tiles.shape[2:]):
            raise ValueError(
                f"a tile's sides must be multiples of {self.multiple_px} px, got {tiles.shape[2]} × {tiles.shape[3]}"
            )


class Generator(Protocol):
    """Tiles in, maps out; what a tile gives does not depend on what else is in its batch."""

    @property
    def spec(self) -> GeneratorSpec:
        """What it reads and gives."""

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB in 0..255 into (B, C, H, W) maps in [0, 1]."""


@runtime_checkable
class SlideAdaptive(Generator, Protocol):
    """A generator that first looks at some tiles of the slide."""

    @property
    def settings(self) -> dict[str, Any]:
        """All it found on the slide, JSON-ready."""

    def for_slide(self, sample: npt.NDArray[np.uint8]) -> SlideAdaptive:
        """Return a generator set for the slide of which `sample`, (N, 3, H, W) in 0..255, was read."""


@dataclass(frozen=True, slots=True)
class TargetRules:
    """How outlined nuclei become the maps a family learns.

    Parameters
    ----------
    center
        ``peak``: each nucleus has one clear maximum; ``distance``: IHCScoreGAN's published map, flat on small nuclei.
    color_variation
        Whether every nucleus of a coloured mask has a brightness of its own.
    others
        Height of the centre map, in [0, 1], on rendered nuclei that are not the tumour's: 0 teaches to pass them
        over, 1 to count them.
    """

    center: Literal["peak", "distance"] = "peak"
    color_variation: bool = True
    others: float = 1.0


class Recipe(Protocol):
    """How a family is trained: its networks, optimisers and losses, of which the training loop knows nothing.

    A batch is name -> uint8 tensor (B, 3, H, W): ``rgb``, ``colour``, ``maps`` are rendered tiles with their coloured
    masks and target maps; ``mask_colour``, ``mask_maps`` those of unrelated nuclei; ``tiles`` real ones without a
    label, where there are any. A family that learns from aligned pictures (`Family.PAIRS`) is given those instead,
    under the names it asks for, cut, turned and mirrored alike, and what its `derived` adds to them.
    """

    targets: TargetRules
    """Of a family without `Family.PAIRS`."""
    optimisers: list[Any]
    multiple_px: int
    """The side of what it learns from must be a multiple of this."""

    def step(self, batch: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """Take gradient step `number`, from 0, and return its losses by name."""

    def state(self) -> dict[str, Any]:
        """Return all that a later step depends on: tensors, numbers, and dicts and lists of them."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the weights that `build` takes."""

    def show(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return pictures of what is learnt from a batch, name -> uint8 (B, 3, H, W)."""


class Family(Protocol):
    """What a module in this folder, or behind the entry point, offers.

    A family that learns from aligned pictures also offers the constant ``PAIRS``, names of the pictures of a pair, its
    input first, and may offer ``derived``. The names are those of the renderer: ``he``, ``ihc``, ``hematoxylin``,
    ``dapi``, ``lap2``, ``marker``, ``segmentation``.
    """

    SPEC: GeneratorSpec
    """Of the published system; a card may differ."""
    Config: type[Any]
    """Frozen dataclass: the architecture and, for training, its options; every field has a default."""

    def build(self, config: Any, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> Generator:
        """Return a generator on `device` with `weights` (name -> array), or freshly initialised without.

        It gives the channels of `spec`, which may be fewer than those of `SPEC`, and computes no more than they take.
        """

    def read_published(self, path: Path) -> tuple[Any, Mapping[str, Any]]:
        """Read the published program's file or folder into (config, weights); ModelError if it is not one.

        Families without published weights leave this out.
        """

    def recipe(
        self, config: Any, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> Recipe:
        """Return what trains it: for `steps` steps, with real `tiles` or on rendered ones alone.

        The networks begin from `seed`, and from the weights in `start`. Families that cannot be trained leave this
        out.
        """

    def derived(self, pictures: Mapping[str, npt.NDArray[np.uint8]]) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Return further pictures, (H, W, C), computed from an aligned set of (H, W, 3), both in 0..255.

        It runs where batches are drawn, in processes without torch. Families without such pictures leave this out.
        """


def option(default: Any, text: str) -> Any:
    """Return a field of a `Config` with its default and what the command line's help says of it."""
    return field(default=default, metadata={"help": text})


def _plugins() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def names() -> tuple[str, ...]:
    """Return the names of all families, built in and installed, importing none of them."""
    return tuple(sorted({module.name for module in pkgutil.iter_modules(__path__)} | set(_plugins())))


def family(name: str) -> Family:
    """Import the module of one family.

    Raises
    ------
    ModelError
        If no family has this name.
    """
    if name not in names():
        raise ModelError(f"no generator family is called {name!r}; there are: {', '.join(names())}")
    module = _plugins().get(name, f"{__name__}.{name}")
    return cast(Family, importlib.import_module(module))
