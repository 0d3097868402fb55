"""Shared by the families trained on aligned image pairs as in pix2pix (Isola et al. 2017): training and weight files.

A generator translates the input image. A conditional discriminator sees the input together with the true or the
generated image.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wsiscore.errors import ModelError
from wsiscore.networks.blocks import ResNet
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.networks.discriminators import GanMode, gan_loss
from wsiscore.networks.generator import initialised, load_weights, pick_device, weights_of
from wsiscore.networks.learner import Learner, frozen, optimiser_step, to_bytes

__all__ = ["PairRecipe", "read_resnet"]

_FILE = "latest_net_G.pth"
_FIRST = "model.1.weight"


class PairRecipe(Learner, ABC):
    """Base class of conditional adversarial training on aligned pairs; a subclass adds networks and losses.

    Each network has an Adam optimiser. The random numbers of a step depend on the seed and the step only.

    Parameters
    ----------
    config
        With the fields `rate` (learning rate), `decay` (fraction of the steps, at the end, over which it falls to 0)
        and `adversarial` (loss weight).
    steps, seed, device, tiles, start
        As for `wsiscore.models.contract.RecipeFactory`; `tiles` is ignored.
    """

    pair: ClassVar[tuple[str, str]]
    """Names of the input and the target image."""
    gan_mode: ClassVar[GanMode]
    """Adversarial loss of `discriminator_step` and `adversarial_loss`."""
    multiple_px: int
    """As in `wsiscore.models.contract.Recipe`; `make_networks` may set it."""

    def __init__(
        self, config: Any, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        self.config = config
        self._steps, self._seed = steps, seed
        self._device = torch.device(pick_device(device))
        self.networks = initialised(lambda: nn.ModuleDict(self.make_networks()), seed).to(self._device)
        if start is not None:
            load_weights(self.networks["generator"], start, self.describe(config))
        self._optimiser = {
            name: torch.optim.Adam(network.parameters(), config.rate, betas=(0.5, 0.999))
            for name, network in self.networks.items()
        }
        self.optimisers = list(self._optimiser.values())

    @staticmethod
    @abstractmethod
    def describe(config: Any) -> str:
        """Return the generator of a config in words, for error texts."""

    @abstractmethod
    def make_networks(self) -> dict[str, nn.Module]:
        """Return ``generator``, ``discriminator`` (of 6 channels: input and target) and any other networks."""

    @abstractmethod
    def update(self, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take one step on a batch, name -> (B, C, H, W) in [-1, 1], and return its losses by name."""

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        self._number = number
        self.set_learning_rate(self.config.rate, self.config.decay, number, 0, self._steps)
        with self._seeded(number):
            losses = self.update({name: self.to_unit(images) for name, images in batch.items()})
        return {name: loss.detach() for name, loss in losses.items()}

    def discriminator_step(self, given: Tensor, true: Tensor, generated: Tensor) -> Tensor:
        """Update the discriminator and return its loss, the mean of those on true and generated images."""
        with self.mixed_precision():
            loss = self._gan_loss(given, true, real=True) + self._gan_loss(given, generated.detach(), real=False)
        loss = loss / 2
        self.optimise("discriminator", loss)
        return loss

    def adversarial_loss(self, given: Tensor, generated: Tensor) -> Tensor:
        """Return the generator's weighted adversarial loss, without gradients for the discriminator's weights."""
        with frozen(self.networks["discriminator"]), self.mixed_precision():
            loss = self._gan_loss(given, generated, real=True)
        return loss * float(self.config.adversarial)

    def _gan_loss(self, given: Tensor, images: Tensor, *, real: bool) -> Tensor:
        """Return the adversarial loss, summed over the discriminator's scales (Wang et al. 2018, eq. 3)."""
        logits = self.networks["discriminator"](torch.cat([given, images], dim=1))
        scales = logits if isinstance(logits, list) else [logits]
        return torch.stack([gan_loss(scale, real=real, mode=self.gan_mode) for scale in scales]).sum()

    def optimise(self, name: str, loss: Tensor) -> None:
        """Take one gradient step of one network on a loss."""
        optimiser_step(self._optimiser[name], loss)

    @contextmanager
    def _seeded(self, number: int) -> Iterator[None]:
        """Seed dropout and other random numbers by the step, so that a resumed training equals an uninterrupted one."""
        with torch.random.fork_rng([torch.cuda.current_device()] if self._device.type == "cuda" else []):
            torch.manual_seed(self._seed * 1_000_003 + number)
            yield

    def weights(self) -> dict[str, Any]:
        """Return the generator's weights, which a model stores."""
        return weights_of(self.networks["generator"])

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the input, the true and the generated image."""
        given, true = (self.to_unit(batch[name]) for name in self.pair)
        generator = self.networks["generator"].eval()
        with torch.inference_mode(), self.mixed_precision():
            shown = {self.pair[0]: given, self.pair[1]: true, "generated": generator(given)}
        generator.train()
        return {name: to_bytes(images).cpu() for name, images in shown.items()}


def read_resnet(path: Path, make: Callable[[int, int], ResNet], description: str) -> tuple[int, int, dict[str, Any]]:
    """Read a ResNet generator that pix2pix or a fork of it saved as ``latest_net_G.pth``.

    Parameters
    ----------
    path
        State dict whose layers are numbered from ``model.1``, reflection paddings included; or its folder.
    make
        Makes the network from a width and a number of residual blocks.
    description
        The generator in words, for error texts.

    Returns
    -------
    width, blocks
        Size of the network in the file.
    weights
        Name in `ResNet` -> array.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is another network.
    """
    if path.is_dir():
        path /= _FILE
    state = read_checkpoint(path)
    wanted = f"{path} is not {description}"
    if not (isinstance(state, dict) and isinstance(state.get(_FIRST), Tensor) and state[_FIRST].ndim == 4):
        held = ", ".join(map(repr, list(state)[:3])) if isinstance(state, dict) else "no dict"
        raise ModelError(f"{wanted}: it holds {held}; wanted its {_FILE}, which begins with {_FIRST!r}")
    width = int(state[_FIRST].shape[0])
    blocks = len({name.split(".")[1] for name in state if ".conv_block." in name})
    with torch.device("meta"):
        network = make(width, blocks)
    layers = _published_layers(network)
    weights: dict[str, Any] = {}
    for ours, value in network.state_dict().items():
        layer, kind = ours.rsplit(".", 1)
        theirs = f"{layers[layer]}.{kind}"
        found = state.pop(theirs, None)
        if not isinstance(found, Tensor):
            raise ModelError(f"{wanted}: {theirs!r} is missing; is it another program's, or truncated?")
        if found.shape != value.shape:
            raise ModelError(f"{wanted}: {theirs!r} is {tuple(found.shape)}, wanted {tuple(value.shape)}")
        weights[ours] = found.to(value.dtype).numpy()
    if state:
        raise ModelError(f"{wanted}: {next(iter(state))!r} is not one of its weights; is it another program's?")
    return width, blocks, weights


def _published_layers(network: ResNet) -> dict[str, str]:
    """Return the name in `ResNet` of each layer with weights -> its published name."""
    downsamplings, blocks = len(network.down), len(network.blocks)
    deep = 4 + 3 * downsamplings
    stages = {"stem": 1} | {f"down.{level}": 4 + 3 * level for level in range(downsamplings)}
    stages |= {f"up.{level}": deep + blocks + 3 * level for level in range(downsamplings)}
    layers = {f"{stage}.{part}": f"model.{at + part}" for stage, at in stages.items() for part in (0, 1)}
    for block in range(blocks):
        inside = len(list(network.blocks[block].get_submodule("block").children()))
        for ours, theirs in ((0, 1), (1, 2), (inside - 2, inside), (inside - 1, inside + 1)):
            layers[f"blocks.{block}.block.{ours}"] = f"model.{deep + block}.conv_block.{theirs}"
    return layers | {"out": f"model.{deep + blocks + 3 * downsamplings + 1}"}
