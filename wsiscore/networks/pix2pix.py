"""What families share that learn one picture from another as pix2pix does (Isola et al. 2017): files and training.

A generator paints a picture from an aligned one; a judge sees both and tells painted from true ones.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from wsiscore.errors import ModelError
from wsiscore.networks.blocks import ResNet, descend, judged
from wsiscore.networks.generator import Learner, fill, fresh, pick_device, read_checkpoint

__all__ = ["PairRecipe", "read_resnet"]

_FILE = "latest_net_G.pth"
_FIRST = "model.1.weight"


class PairRecipe(Learner, ABC):
    """The frame of a conditional adversarial training on aligned pictures; a family adds its networks and losses.

    Every network has its Adam. What a step draws is a function of the seed and the step's number.

    Parameters
    ----------
    config
        With fields `rate` (learning rate), `decay` (share of the steps at the end in which it falls to 0) and
        `adversarial` (weight of the judge's verdict).
    steps, seed, device, tiles, start
        As in `wsiscore.generators.Family.recipe`; there are no tiles to learn from, whatever `tiles` says.
    """

    pair: ClassVar[tuple[str, str]]
    """Names of the input and of the picture to paint."""
    gan_loss: ClassVar[Literal["squares", "vanilla"]]
    """As in `wsiscore.nets.judged`."""
    multiple_px: int
    """As in `wsiscore.generators.Recipe`; `make` may set it."""

    def __init__(
        self, config: Any, *, steps: int, seed: int, device: str, tiles: bool, start: Mapping[str, Any] | None
    ) -> None:
        self.config = config
        self._steps, self._seed = steps, seed
        self._device = torch.device(pick_device(device))
        self.networks = fresh(lambda: nn.ModuleDict(self.make()), seed).to(self._device)
        if start is not None:
            fill(self.networks["generator"], start, self.what())
        self._optimiser = {
            name: torch.optim.Adam(network.parameters(), config.rate, betas=(0.5, 0.999))
            for name, network in self.networks.items()
        }
        self.optimisers = list(self._optimiser.values())

    @abstractmethod
    def what(self) -> str:
        """Return the generator in words, for an error text."""

    @abstractmethod
    def make(self) -> dict[str, nn.Module]:
        """Return the networks: ``generator``, ``judge`` (of 6 channels: input, picture), and any others."""

    @abstractmethod
    def learn(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take one step on a batch, name -> (B, C, H, W) in [-1, 1], and return its losses by name."""

    def step(self, batch: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Take gradient step `number` and return its losses by name."""
        self._number = number
        falling = max(self._steps * self.config.decay, 1)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.config.rate * min(1.0, (self._steps - number) / falling)
        with self._drawing(number):
            losses = self.learn({name: self._unit(pictures) for name, pictures in batch.items()})
        return {name: loss.detach() for name, loss in losses.items()}

    def judge(self, given: Tensor, true: Tensor, painted: Tensor) -> Tensor:
        """Teach the judge one step and return its loss: the mean of that on true and on painted pictures."""
        with self.mixed():
            seen = self._verdict(given, true, real=True)
            caught = self._verdict(given, painted.detach(), real=False)
        loss = (seen + caught) / 2
        self.descend("judge", loss)
        return loss

    def convinced(self, given: Tensor, painted: Tensor) -> Tensor:
        """Return the weighted loss of painted pictures that the judge does not take for true; the judge learns not."""
        weights = list(self.networks["judge"].parameters())
        for weight in weights:
            weight.requires_grad_(False)
        with self.mixed():
            loss = self._verdict(given, painted, real=True)
        for weight in weights:
            weight.requires_grad_(True)
        return loss * float(self.config.adversarial)

    def _verdict(self, given: Tensor, picture: Tensor, *, real: bool) -> Tensor:
        """Return the judge's loss, summed over its scales (Wang et al. 2018, eq. 3)."""
        logits = self.networks["judge"](torch.cat([given, picture], dim=1))
        scales = logits if isinstance(logits, list) else [logits]
        return torch.stack([judged(scale, real=real, loss=self.gan_loss) for scale in scales]).sum()

    def descend(self, name: str, loss: Tensor) -> None:
        """Take one step of one network down a loss."""
        descend(self._optimiser[name], loss)

    @contextmanager
    def _drawing(self, number: int) -> Iterator[None]:
        """Draw what a step leaves out from its number, so that a resumed training draws the same."""
        with torch.random.fork_rng([torch.cuda.current_device()] if self._device.type == "cuda" else []):
            torch.manual_seed(self._seed * 1_000_003 + number)
            yield

    def weights(self) -> dict[str, Any]:
        """Return the generator's weights, which is what a model stores."""
        held = self.networks["generator"].state_dict()
        return {name: value.detach().cpu().contiguous().numpy().copy() for name, value in held.items()}

    def show(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the input, the true picture and the painted one."""
        given, true = (self._unit(batch[name]) for name in self.pair)
        generator = self.networks["generator"].eval()
        with torch.inference_mode(), self.mixed():
            shown = {self.pair[0]: given, self.pair[1]: true, "painted": generator(given)}
        generator.train()
        return {name: ((at.float() + 1) * 127.5).round().to("cpu", torch.uint8) for name, at in shown.items()}


def read_resnet(path: Path, make: Callable[[int, int], ResNet], what: str) -> tuple[int, int, dict[str, Any]]:
    """Read the generator that a program of pix2pix's kind saved as ``latest_net_G.pth``.

    Parameters
    ----------
    path
        A state dict whose layers are numbered ``model.1`` to the last, reflection paddings included; or its folder.
    make
        Makes the network of a width and a number of residual blocks.
    what
        The generator in words, for the error text.

    Returns
    -------
    width, blocks
        Of the network in the file.
    weights
        By the names of `ResNet`.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is not such a network.
    """
    if path.is_dir():
        path /= _FILE
    state = read_checkpoint(path)
    wanted = f"{path} is not {what}"
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
            raise ModelError(f"{wanted}: {theirs!r} is missing; is it another program's, or cut short?")
        if found.shape != value.shape:
            raise ModelError(f"{wanted}: {theirs!r} is {tuple(found.shape)}, wanted {tuple(value.shape)}")
        weights[ours] = found.to(value.dtype).numpy()
    if state:
        raise ModelError(f"{wanted}: {next(iter(state))!r} has no place in it; is it another program's?")
    return width, blocks, weights


def _published_layers(network: ResNet) -> dict[str, str]:
    """Return our name of each layer with weights -> the published one."""
    halvings, blocks = len(network.down), len(network.blocks)
    deep = 4 + 3 * halvings
    stages = {"stem": 1} | {f"down.{level}": 4 + 3 * level for level in range(halvings)}
    stages |= {f"up.{level}": deep + blocks + 3 * level for level in range(halvings)}
    layers = {f"{stage}.{part}": f"model.{at + part}" for stage, at in stages.items() for part in (0, 1)}
    for block in range(blocks):
        inside = len(list(network.blocks[block].get_submodule("block").children()))
        for ours, theirs in ((0, 1), (1, 2), (inside - 2, inside), (inside - 1, inside + 1)):
            layers[f"blocks.{block}.block.{ours}"] = f"model.{deep + block}.conv_block.{theirs}"
    return layers | {"out": f"model.{deep + blocks + 3 * halvings + 1}"}
