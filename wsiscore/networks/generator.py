"""Running a torch network as a generator: device, seeded start, weights in, tiles to maps."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wsiscore.errors import ModelError
from wsiscore.models.contract import GeneratorSpec, TargetRules

__all__ = ["Learner", "NetworkGenerator", "fill", "fresh", "mixed", "pick_device", "read_checkpoint"]

Network = TypeVar("Network", bound=nn.Module)
_BROKEN = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


class NetworkGenerator:
    """A torch network as a `Generator`.

    A GPU takes the whole batch at once. On the CPU each core takes a tile of its own: threads that share one
    convolution wait for one another at every layer, which costs dearly once other threads read and decode.

    Parameters
    ----------
    network
        Takes (B, 3, H, W) float32 in [-1, 1], gives (B, C, H, W) in [-1, 1]; put in evaluation mode here.
    spec
        What it reads and gives.
    device
        As for `pick_device`.

    Raises
    ------
    ModelError
        If this computer has no such device.
    """

    def __init__(self, network: nn.Module, spec: GeneratorSpec, device: str = "auto") -> None:
        self.spec = spec
        self.device = pick_device(device)
        self._network = network.eval().to(self.device)
        self._workers: ThreadPoolExecutor | None = None
        if self.device == "cpu":
            self._workers = ThreadPoolExecutor(torch.get_num_threads(), "tile", lambda: torch.set_num_threads(1))
        for weight in self._network.parameters():
            if weight.ndim == 4:
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn tiles into maps.

        Parameters
        ----------
        tiles
            (B, 3, H, W) RGB in 0..255, an array or a torch tensor; H and W multiples of `spec.multiple_px`.

        Returns
        -------
        (B, C, H, W) in [0, 1], channels as in `spec.channels`.

        Raises
        ------
        ValueError
            If the tiles have another type, shape or size.
        """
        tiles = np.require(tiles, requirements=["C", "W"])  # as torch wants them
        self.spec.check(tiles)
        if self._workers is None or not len(tiles):
            return self._run(tiles)
        return np.concatenate(list(self._workers.map(self._run, np.split(tiles, len(tiles)))))

    def _run(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode(), mixed(self.device):
            batch = torch.from_numpy(tiles).to(self.device, memory_format=torch.channels_last)
            maps = self._network(batch.float() / 127.5 - 1)
            result: npt.NDArray[np.float32] = ((maps.float() + 1) / 2).contiguous().cpu().numpy()
        return result

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the network's weights, by name, as a model folder stores them."""
        return {name: value.detach().cpu().numpy().copy() for name, value in self._network.state_dict().items()}


def mixed(device: str) -> torch.autocast:
    """Return the context in which a network computes on a device: in half precision on a GPU, in single elsewhere."""
    return torch.autocast(torch.device(device).type, enabled=device.startswith("cuda"))


class Learner:
    """What the recipes of torch networks share: bytes in, mixed precision, and a state to go on from."""

    targets: TargetRules | None = None
    networks: nn.ModuleDict
    optimisers: list[torch.optim.Optimizer]
    _device: torch.device

    def _unit(self, pictures: Tensor) -> Tensor:
        """Return (B, C, H, W) uint8 pictures on the device, in [-1, 1]."""
        at = pictures.to(self._device, memory_format=torch.channels_last, non_blocking=True)
        return at.float() / 127.5 - 1

    def mixed(self) -> torch.autocast:
        """Return the context in which networks run."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")

    def state(self) -> dict[str, Any]:
        """Return the weights and the optimisers' moments."""
        return {
            "networks": self.networks.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.networks.load_state_dict(state["networks"])
        for optimiser, held in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(held)


def pick_device(name: str = "auto") -> str:
    """Return the device to run on: the one asked for, or the fastest kind there is for ``auto``.

    Parameters
    ----------
    name
        ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ModelError
        If the name is no device, or this computer has none of it.
    """
    there = ["cpu"]
    if torch.backends.mps.is_available():
        there.insert(0, "mps")
    if torch.cuda.is_available():
        there[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return there[0]
    if name not in there:
        raise ModelError(f"device {name!r} is not on this computer; choose auto or one of: {', '.join(there)}")
    return name


def fresh(make: Callable[[], Network], seed: int = 0) -> Network:
    """Return a newly initialised network: the same for the same seed, leaving torch's own state untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def fill(network: nn.Module, weights: Mapping[str, Any], what: str) -> None:
    """Put weights into a network, all of them and no others.

    Parameters
    ----------
    network
        Changed in place.
    weights
        Name -> array or tensor; any float type.
    what
        The network in words, for the error text, such as ``family 'x' of width 64``.

    Raises
    ------
    ModelError
        If a weight is missing, has another shape, or has no place in the network.
    """
    wanted = network.state_dict()
    for name, value in wanted.items():
        if name not in weights:
            raise ModelError(f"the weights are not those of {what}: {name!r} is missing")
        if tuple(weights[name].shape) != tuple(value.shape):
            found, shape = tuple(weights[name].shape), tuple(value.shape)
            raise ModelError(f"the weights are not those of {what}: {name!r} is {found}, wanted {shape}")
    if extra := sorted(set(weights) - set(wanted)):
        raise ModelError(f"the weights are not those of {what}: {extra[0]!r} has no place in it")
    network.load_state_dict({name: torch.as_tensor(weights[name]) for name in wanted})


def read_checkpoint(path: Path) -> Any:
    """Read a torch checkpoint of plain weights, running no code from it.

    Returns
    -------
    What was saved: dicts and lists of tensors and numbers.

    Raises
    ------
    ModelError
        If the file is missing, damaged, no checkpoint, or holds code.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; wanted a torch checkpoint")
    with path.open("rb") as file:
        start = file.read(2)
    if not (start == b"PK" or start[:1] == b"\x80"):
        raise ModelError(f"{path} is not a torch checkpoint; wanted the .pt or .pth file of the weights")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is said below
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?i:global) (\w+(?:\.\w+)+)", str(error))
        what = f"code ({found[1]})" if found else "something other than weights, perhaps code"
        raise ModelError(
            f"{path} holds {what} and was not run; ask its author for a file of plain weights (a state dict)"
        ) from error
    except _BROKEN as error:
        if "TorchScript" in str(error):
            raise ModelError(f"{path} is a TorchScript program, not a file of plain weights") from error
        raise ModelError(f"{path} is damaged or not a torch checkpoint; copy it again") from error
