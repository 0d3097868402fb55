"""IHCScoreGAN: unsupervised Ki67 scoring with a two-branch generator (Molnar et al.).

An encoder reads the tile. A colour decoder generates a mask with one colour for each class of nuclei, and a second
decoder, the K branch, generates the centre map and the two class maps. The colour decoder is needed in training only:
a model stores and runs the encoder and the K branch, which saves 40 % of the arithmetic and gives the same maps.

torch is imported where it is needed only: an engine that is not torch runs `graph`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsiscore.engines.graph import Graph, Node
from wsiscore.generators.ihcscoregan.config import SPEC, Config
from wsiscore.models.contract import Family, GeneratorSpec

if TYPE_CHECKING:
    from wsiscore.generators.ihcscoregan.recipe import Recipe
    from wsiscore.networks.generator import NetworkGenerator

__all__ = ["FAMILY", "SPEC", "Config", "build", "graph"]


def graph(config: Config, builder: Graph) -> Node:
    """Describe the encoder and K branch, as `network.UNet`, to an engine; return its maps before tanh."""
    features, skips = builder.tiles, []
    for level in range(4):
        layer = f"encoder.down.{level}"
        if level:
            features = builder.leaky_relu(features, 0.2)
            features = builder.conv(features, f"{layer}.1", stride=2, padding=1, norm=f"{layer}.2")
        else:
            features = builder.conv(features, layer, stride=2, padding=1)
        skips.append(features)
    for part in ("encoder.tail", "decoder.head"):
        for block in range(config.blocks):
            layer = f"{part}.{block}.block"
            inside = builder.conv(features, f"{layer}.0", padding=1, reflect=True, norm=f"{layer}.1")
            inside = builder.conv(builder.relu(inside), f"{layer}.3", padding=1, reflect=True, norm=f"{layer}.4")
            features = builder.add(features, inside)
    features = builder.relu(features)
    for level, skip in enumerate(reversed(skips)):
        layer, inner = f"decoder.up.{level}", level < 3
        norm, repeated = f"{layer}.2" if inner else None, 2
        if level or config.blocks:  # else both are the same
            features, repeated = builder.concat(features, builder.relu(skip)), 1
        features = builder.up(features, f"{layer}.1", norm=norm, relu=inner, repeated=repeated)
    return features


def build(config: Config, spec: GeneratorSpec, weights: Mapping[str, Any] | None, device: str) -> NetworkGenerator:
    """Return the encoder and K branch as a generator, newly initialised if `weights` is None.

    Raises
    ------
    ModelError
        If the weights do not fit, or there is no such device.
    """
    from wsiscore.generators.ihcscoregan.network import k_branch
    from wsiscore.networks.generator import NetworkGenerator

    return NetworkGenerator(k_branch(config, weights), spec, device)


def _recipe(config: Config, **options: Any) -> Recipe:
    """Return what trains it, see `wsiscore.models.contract.RecipeFactory`."""
    from wsiscore.generators.ihcscoregan.recipe import Recipe

    return Recipe(config, **options)


def _read_published(path: Path) -> tuple[Config, Mapping[str, Any]]:
    """Read the published program's checkpoint, see `published.read_published`."""
    from wsiscore.generators.ihcscoregan.published import read_published

    return read_published(path)


def _adapt(config: Config, spec: GeneratorSpec) -> GeneratorSpec:
    """Return the spec of a model of this configuration."""
    channels = (*(name for name in spec.channels if name != "other"), *("other",) * (config.maps - 3))
    return replace(spec, channels=channels, norm=config.norm)


FAMILY = Family(
    name=SPEC.family,
    spec=SPEC,
    config=Config,
    build=build,
    recipe=_recipe,
    read_published=_read_published,
    graph=graph,
    adapt=_adapt,
    from_truth=True,
    renamed={"judge_width": "discriminator_width", "warm_share": "warm_fraction"},
)
