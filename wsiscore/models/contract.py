"""The contract between generator families and the rest of the program.

A family turns a batch of tiles into maps with named channels. Everything else follows from what its `GeneratorSpec`
declares. A family is one module with a constant ``FAMILY``; see `wsiscore.models.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from wsiscore.cells.rules import Rules
from wsiscore.engines.choice import Precision
from wsiscore.engines.graph import Graph, Node

__all__ = [
    "IMAGE",
    "Family",
    "Generator",
    "GeneratorSpec",
    "Maps",
    "Networked",
    "Recipe",
    "RecipeFactory",
    "SlideAdaptive",
    "TargetRules",
    "option",
]

Maps = Literal["needed", "all"]
"""Which maps a model computes: those its kind of output needs, or all it has."""
Weights = Mapping[str, Any]
"""Name -> array."""
Pixels = npt.NDArray[np.uint8]

IMAGE = "image"
"""`GeneratorSpec.output` of a generator of RGB pictures, which are slides again, in which no cells are found."""
_RGB = frozenset({"red", "green", "blue"})


@dataclass(frozen=True, slots=True)
class GeneratorSpec:
    """What a generator reads and gives; callers ask this and never the family's name.

    Parameters
    ----------
    family
        The family that runs it.
    channels
        Names of the output maps, in order: those that its kind of output needs, and any others.
    mpp
        Micrometres per pixel it reads and writes.
    tile_px
        Side of the square tile it reads by default.
    margin_px
        Width of a tile's border that is read but not kept.
    multiple_px
        A tile's side must be a multiple of this.
    dtype
        How the mosaic stores the maps: ``uint8``, as the codes of `wsiscore.map_codes` or the pixels of a picture; or,
        of models of earlier versions, ``float16``.
    rules
        Defaults for turning the maps into cells; None for a picture, whose channels are red, green and blue.
    norm
        What the statistics of its normalisation are of: each ``tile``, or a sample of the ``slide``.

    Raises
    ------
    ValueError
        If a channel is missing or named twice, or the sizes do not go together.
    """

    family: str
    channels: tuple[str, ...]
    mpp: float
    tile_px: int = 256
    margin_px: int = 32
    multiple_px: int = 16
    dtype: Literal["float16", "uint8"] = "uint8"
    rules: Rules | None = None
    norm: Literal["tile", "slide"] = "tile"

    def __post_init__(self) -> None:
        given = "/".join(self.channels)
        if len(set(self.channels)) < len(self.channels):
            raise ValueError(f"channels {given} name a map twice")
        if missing := sorted(self._needed() - set(self.channels)):
            raise ValueError(f"channels {given} lack {', '.join(missing)}, which output {self.output!r} needs")
        if self.norm not in ("tile", "slide"):
            raise ValueError(f"the norm is tile or slide, got {self.norm!r}")
        if self.tile_px % self.multiple_px:
            raise ValueError(f"tiles of {self.tile_px} px are not a multiple of {self.multiple_px} px")
        if not 0 <= 2 * self.margin_px < self.tile_px:
            raise ValueError(f"a margin of {self.margin_px} px leaves nothing of a {self.tile_px} px tile")

    def _needed(self) -> frozenset[str]:
        return self.rules.channels if self.rules else _RGB

    @property
    def output(self) -> str:
        """Kind of output: that of the rules, or `IMAGE`."""
        return self.rules.output if self.rules else IMAGE

    @property
    def needed(self) -> tuple[str, ...]:
        """The channels that this kind of output needs, in order."""
        wanted = self._needed() | (self.rules.optional if self.rules else frozenset())
        return tuple(channel for channel in self.channels if channel in wanted)

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
    """Tiles in, maps out; what a tile gives does not depend on what else is in its batch.

    It may be called from two threads at once.
    """

    @property
    def spec(self) -> GeneratorSpec:
        """What it reads and gives."""

    @property
    def device(self) -> str:
        """Where it computes: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``."""

    def __call__(self, tiles: Pixels) -> npt.NDArray[np.float32]:
        """Turn (B, 3, H, W) RGB in 0..255 into (B, C, H, W) maps in [0, 1]."""

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of its weights by name, as a model folder stores them; empty if it has none."""


@runtime_checkable
class Networked(Generator, Protocol):
    """A generator that runs a network, which an engine computes in some precision."""

    @property
    def engine(self) -> str:
        """What computes it: ``torch``, ``openvino`` or ``onnx``."""

    @property
    def precision(self) -> str:
        """Of its convolutions: ``fp32``, ``bf16``, ``int8``, or ``fp16`` on a GPU."""

    def in_precision(self, precision: Precision) -> Networked:
        """Return the generator in another precision; ModelError if the device has no such."""


@runtime_checkable
class SlideAdaptive(Generator, Protocol):
    """A generator that is set for each slide from a sample of its tiles."""

    @property
    def settings(self) -> dict[str, Any]:
        """All it found on the slide, JSON-ready."""

    def for_slide(self, sample: Pixels, weights: npt.NDArray[np.float32] | None = None) -> SlideAdaptive:
        """Return a generator set for a slide.

        Parameters
        ----------
        sample
            Tiles of it, (N, 3, H, W) in 0..255.
        weights
            (N, 1, H, W) in [0, 1]: how much each pixel counts, 0 beyond the slide; by default all alike.
        """

    def with_settings(self, settings: Mapping[str, Any]) -> SlideAdaptive:
        """Return the generator whose `settings` these were."""


@dataclass(frozen=True, slots=True)
class TargetRules:
    """How outlined nuclei become the maps that a family is trained on.

    Parameters
    ----------
    center
        ``peak``: each nucleus has one clear maximum; ``distance``: IHCScoreGAN's published map, flat on small nuclei.
    color_variation
        Whether every nucleus of a coloured mask has a brightness of its own.
    others
        Height of the centre map, in [0, 1], on rendered nuclei that are not the tumour's: at 0 the model learns to
        leave them out, at 1 to count them.
    maps
        3, or 4 with a map of nuclei that are not the tumour's.
    """

    center: Literal["peak", "distance"] = "peak"
    color_variation: bool = True
    others: float = 1.0
    maps: Literal[3, 4] = 3


class Recipe(Protocol):
    """How a family is trained: its networks, optimisers and losses, of which the training loop knows nothing.

    A batch is name -> uint8 tensor (B, 3, H, W): ``rgb``, ``colour``, ``maps`` are rendered tiles with their coloured
    masks and target maps; ``mask_colour``, ``mask_maps`` those of unrelated nuclei; ``tiles`` real ones without
    labels, where there are any. A family that is trained on aligned pictures (`Family.pairs`) is given those instead,
    under the names it asks for, cropped, rotated and mirrored alike, and what its `Family.derived` adds to them.
    A family with `Family.from_truth` may be given ``rgb`` with ``maps`` and ``known``, (B, 4, H, W): centre, positive,
    negative and other, and how much each pixel of each counts, in 0..255; and ``inside``, (B, 1, H, W), 0 or 1.
    """

    targets: TargetRules | None
    """How outlined nuclei become target maps; None for a family with `Family.pairs`."""
    optimisers: list[Any]
    multiple_px: int
    """The side of a training crop must be a multiple of this."""

    def step(self, batch: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        """Take gradient step `number`, from 0, and return its losses by name."""

    def state(self) -> dict[str, Any]:
        """Return all that a later step depends on: tensors, numbers, and dicts and lists of them."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return the weights that `Family.build` takes."""

    def show(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return pictures of the current result on a batch, name -> uint8 (B, 3, H, W)."""


class RecipeFactory(Protocol):
    """What makes a family's `Recipe`."""

    def __call__(
        self, config: Any, *, steps: int, seed: int, device: str, tiles: bool, start: Weights | None
    ) -> Recipe:
        """Return a recipe.

        Parameters
        ----------
        config
            Of the family's `Family.config`.
        steps
            Length of the whole training.
        seed
            Of the initial weights.
        device
            As in `Family.build`.
        tiles
            Whether there are real tiles without labels, or rendered ones alone.
        start
            Weights to begin from, name -> array, instead of fresh ones.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A generator family: the constant ``FAMILY`` of its module.

    Parameters
    ----------
    name
        What it is called; of a family in `wsiscore.generators`, the name of its module.
    spec
        That of the published system; a model's card may differ.
    config
        Frozen dataclass: the architecture and, for training, its options; every field has a default.
    build
        ``build(config, spec, weights, device)`` returns a generator on `device` (as for ``--device``) with `weights`
        (name -> array), or freshly initialised without. It gives the channels of `spec`, which may be fewer than the
        family's, and computes no more than they need. ModelError if the weights do not fit.
    recipe
        Makes what trains it; None if it cannot be trained.
    pairs
        Names of the aligned pictures it is trained on, its input first; empty for training on tiles. The renderer knows
        ``he``, ``ihc``, ``hematoxylin``, ``dapi``, ``lap2``, ``marker``, ``segmentation``.
    derived
        Computes further pictures, (H, W) or (H, W, C), from an aligned set of (H, W, 3), all uint8 in 0..255, where
        batches are drawn, in processes without torch.
    read_published
        Reads the published program's file or folder into (config, weights), running no code of it; ModelError if it is
        not one. None if there are no published weights.
    imported
        What such an imported model is, in a few words.
    adapt
        ``adapt(config, spec)`` returns the spec of a model of this configuration, where that decides the channels or
        the normalisation; None where it does not.
    from_truth
        Whether it can be trained on annotated pictures: its recipe then takes batches with the weights of pixels.
    renamed
        Former name of a field of `config` -> its name now, for the cards and commands of earlier versions.
    graph
        ``graph(config, builder)`` describes the network of `build` to engines other than torch and returns its
        maps before tanh; None if it runs by `build` only.
    """

    name: str
    spec: GeneratorSpec
    config: type[Any]
    build: Callable[[Any, GeneratorSpec, Weights | None, str], Generator]
    recipe: RecipeFactory | None = None
    pairs: tuple[str, ...] = ()
    derived: Callable[[Mapping[str, Pixels]], Mapping[str, Pixels]] | None = None
    read_published: Callable[[Path], tuple[Any, Weights]] | None = None
    imported: str = "Published weights"
    adapt: Callable[[Any, GeneratorSpec], GeneratorSpec] | None = None
    from_truth: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    graph: Callable[[Any, Graph], Node] | None = None

    def current(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of `config` by their names now.

        Raises
        ------
        ValueError
            If an option is given by its former name and by its name now.
        """
        for former, now in self.renamed.items():
            if former in options and now in options:
                raise ValueError(f"{former!r} and {now!r} are the same option; give one of them")
        return {self.renamed.get(name, name): value for name, value in options.items()}


def option(default: Any, text: str) -> Any:
    """Return a field of a `Family.config` with its default and its text in the command line's help."""
    return field(default=default, metadata={"help": text})
