"""A torch network as a generator: device, precision, initialisation, weights, and tiles to maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from wsiscore.engines.choice import Precision
from wsiscore.engines.graph import Statistics
from wsiscore.errors import ModelError
from wsiscore.models.contract import GeneratorSpec
from wsiscore.networks.slide_norm import frozen, measure
from wsiscore.threads import threads

__all__ = ["NetworkGenerator", "initialised", "load_weights", "loaded", "mixed_precision", "pick_device", "weights_of"]

Network = TypeVar("Network", bound=nn.Module)

_MOST_NUMBERS = 10**9  # of a network without weights


class NetworkGenerator:
    """A torch network as a `Generator`.

    A GPU runs the whole batch at once. On the CPU each core runs its own tile: threads that divide a convolution wait
    for each other at every layer, which is slow when other threads read and decode tiles.

    Parameters
    ----------
    network
        Maps (B, 3, H, W) float32 in [-1, 1] to (B, C, H, W) in [-1, 1]; set to evaluation mode and moved to `device`.
    spec
        What the generator reads and gives.
    device
        As for `pick_device`. On a CUDA device the precision is mixed half, ``fp16``, until another is asked for.

    Raises
    ------
    ModelError
        If this computer has no such device.
    """

    engine = "torch"

    def __init__(self, network: nn.Module, spec: GeneratorSpec, device: str = "auto") -> None:
        self.spec = spec
        self.device = pick_device(device)
        self.precision = "fp16" if self.device.startswith("cuda") else "fp32"
        self._network = network.eval().to(self.device)
        self._workers: ThreadPoolExecutor | None = None
        if self.device == "cpu":
            self._workers = ThreadPoolExecutor(
                min(torch.get_num_threads(), threads()), "tile", lambda: torch.set_num_threads(1)
            )
        self._statistics: Statistics = {}
        _to_channels_last(self._network)

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn tiles into maps.

        Parameters
        ----------
        tiles
            (B, 3, H, W) uint8 RGB; H and W multiples of `spec.multiple_px`.

        Returns
        -------
        (B, C, H, W) float32 in [0, 1], channels as in `spec.channels`.

        Raises
        ------
        ValueError
            If the tiles have another type, shape or size.
        """
        tiles = np.require(tiles, requirements=["C", "W"])  # torch needs contiguous, writable memory
        self.spec.check(tiles)
        if self._workers is None or not len(tiles):
            return self._run(tiles)
        return np.concatenate(list(self._workers.map(self._run, np.split(tiles, len(tiles)))))

    def _run(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        with torch.inference_mode(), mixed_precision(self.device, self.precision):
            maps = self._network(self._batch(tiles))
            result: npt.NDArray[np.float32] = ((maps.float() + 1) / 2).contiguous().cpu().numpy()
        return result

    def _batch(self, tiles: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Return tiles on the device, in [-1, 1]."""
        batch = torch.from_numpy(tiles)
        if self.device.startswith("cuda"):  # from pinned memory the copy is awaited by the device, not by this thread
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        return batch.to(self.device, memory_format=torch.channels_last).float() / 127.5 - 1

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the network's weights by name, as a model folder stores them."""
        return weights_of(self._network)

    def in_precision(self, precision: Precision) -> Self:
        """Return the generator in another precision.

        Raises
        ------
        ModelError
            If the device does not compute in it.
        """
        able = ["fp32", *(["bf16"] if _has_bf16(self.device) else [])]
        if precision not in able:
            raise ModelError(
                f"torch has no {precision} on this {self.device}; it has: {', '.join(able)}; "
                "give another --precision or --engine"
            )
        twin = copy.copy(self)
        twin.precision = precision
        return twin

    @property
    def settings(self) -> dict[str, Any]:
        """What was measured on the slide, JSON-ready: the statistics of normalisation, if they are the slide's."""
        return {"norm": {name: list(pair) for name, pair in self._statistics.items()}} if self._statistics else {}

    def for_slide(self, sample: npt.NDArray[np.uint8], weights: npt.NDArray[np.float32] | None = None) -> Self:
        """Return a generator whose normalisation is fixed by a sample of a slide, if `spec.norm` says so.

        Parameters
        ----------
        sample
            (N, 3, H, W) RGB in 0..255.
        weights
            (N, 1, H, W) in [0, 1]: how much each pixel counts; by default all alike.
        """
        if self.spec.norm == "tile":
            return self
        sample = np.require(sample, requirements=["C", "W"])
        if weights is None:
            weights = np.ones((len(sample), 1, *sample.shape[2:]), np.float32)
        counted = torch.from_numpy(np.require(weights, np.float32, ["C", "W"])).to(self.device)
        return self._frozen(measure(self._network, self._batch(sample), counted))

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """Return the generator whose `settings` these were."""
        norm = settings.get("norm")
        return self._frozen({name: (mean, scale) for name, (mean, scale) in norm.items()}) if norm else self

    def _frozen(self, statistics: Statistics) -> Self:
        twin = copy.copy(self)
        twin._statistics = statistics
        twin._network = frozen(self._network, statistics)
        _to_channels_last(twin._network)
        return twin


def _to_channels_last(network: nn.Module) -> None:
    for weight in network.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def mixed_precision(device: str, precision: str | None = None) -> torch.autocast:
    """Return the autocast context for inference.

    Parameters
    ----------
    device
        A device of torch.
    precision
        ``fp32``, or ``fp16`` or ``bf16`` for convolutions; by default half precision on CUDA, single elsewhere.
    """
    kind = torch.device(device).type
    if precision is None:
        precision = "fp16" if kind == "cuda" else "fp32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16 if kind == "cuda" else None
    return torch.autocast(kind, dtype, enabled=precision != "fp32")


def _has_bf16(device: str) -> bool:
    """Return whether a device multiplies in bf16, and does not convert to fp32 and back, which is slower."""
    if device == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)


def pick_device(name: str = "auto") -> str:
    """Return the device to run on; ``auto`` is CUDA, else MPS, else the CPU.

    Parameters
    ----------
    name
        ``auto``, ``cpu``, ``mps``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    ModelError
        If this computer has no such device.
    """
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available[:0] = ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if name == "auto":
        return available[0]
    if name not in available:
        raise ModelError(f"device {name!r} is not on this computer; choose auto or one of: {', '.join(available)}")
    return name


def initialised(make: Callable[[], Network], seed: int = 0) -> Network:
    """Return ``make()`` with weights drawn from `seed`; the global random state of torch is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def load_weights(network: nn.Module, weights: Mapping[str, Any], description: str) -> None:
    """Load weights into a network; they must fit it exactly.

    Parameters
    ----------
    network
        Changed in place.
    weights
        Name -> array or tensor of any float type.
    description
        The network in words, for the error text, such as ``family 'x' with width=64``.

    Raises
    ------
    ModelError
        If a weight is missing, has another shape, or is not one of the network's.
    """
    state = network.state_dict()
    _refuse_others(state, weights, description)
    network.load_state_dict({name: torch.as_tensor(weights[name]) for name in state})


def _refuse_others(state: Mapping[str, torch.Tensor], weights: Mapping[str, Any], description: str) -> None:
    """Raise a ModelError unless `weights` has the names and shapes of a network's state, and no others."""
    for name, value in state.items():
        if name not in weights:
            raise ModelError(f"the weights are not those of {description}: {name!r} is missing")
        if tuple(weights[name].shape) != tuple(value.shape):
            found, wanted = tuple(weights[name].shape), tuple(value.shape)
            raise ModelError(f"the weights are not those of {description}: {name!r} is {found}, wanted {wanted}")
    if extra := sorted(set(weights) - set(state)):
        raise ModelError(f"the weights are not those of {description}: {extra[0]!r} is not one of them")


def loaded(make: Callable[[], Network], weights: Mapping[str, Any] | None, description: str) -> Network:
    """Return ``make()`` with `weights`, or newly initialised if they are None; see `load_weights`.

    A network on torch's meta device, which takes no memory, is checked first: no card can ask for more memory than its
    weights take.
    """
    with torch.device("meta"):
        state = make().state_dict()
    if weights is not None:
        _refuse_others(state, weights, description)
    elif (size := sum(value.numel() for value in state.values())) > _MOST_NUMBERS:
        raise ModelError(f"{description} has {size:.2g} weights; wanted at most {_MOST_NUMBERS:.0e}")
    network = initialised(make)
    if weights is not None:
        load_weights(network, weights, description)
    return network


def weights_of(network: nn.Module) -> dict[str, npt.NDArray[Any]]:
    """Return a copy of a network's weights by name."""
    state = network.state_dict()
    return {name: value.detach().cpu().contiguous().numpy().copy() for name, value in state.items()}
