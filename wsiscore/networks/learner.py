"""The base of the training recipes of torch networks: images in and out, learning rate, optimiser steps, state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from wsiscore.models.contract import TargetRules

__all__ = ["Learner", "frozen", "optimiser_step", "to_bytes", "total"]

_RENAMED = {"painter_judge": "ihc_discriminator", "painter": "ihc_generator", "judge": "discriminator"}
"""Parts of the names of networks in the checkpoints of version 1 -> now."""


class Learner:
    """Base class of the recipes; a subclass sets the attributes below and adds ``step``, ``weights`` and ``show``."""

    targets: TargetRules | None = None
    networks: nn.ModuleDict
    optimisers: list[torch.optim.Optimizer]
    _device: torch.device

    def to_unit(self, images: Tensor) -> Tensor:
        """Return (B, C, H, W) uint8 images on the device, float32 in [-1, 1]."""
        moved = images.to(self._device, memory_format=torch.channels_last, non_blocking=True)
        return moved.float() / 127.5 - 1

    def mixed_precision(self) -> torch.autocast:
        """Return the autocast context for training: bfloat16 on CUDA, single precision elsewhere."""
        return torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda")

    def set_learning_rate(
        self, rate: float, decay: float, number: int, first: int, last: int, *, rise: int = 1
    ) -> None:
        """Set the learning rate of all optimisers for a step: constant, then falling linearly to 0.

        Parameters
        ----------
        rate
            Constant learning rate.
        decay
            Fraction of the steps, at the end, over which it falls.
        number
            Step; `first` <= `number` < `last`.
        first, last
            Range of steps.
        rise
            Steps at the start over which it rises linearly.
        """
        falling = max((last - first) * decay, 1)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, (number - first + 1) / max(rise, 1), (last - number) / falling)

    def state(self) -> dict[str, Any]:
        """Return the weights of all networks and the state of all optimisers."""
        return {
            "networks": self.networks.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        self.networks.load_state_dict({_current(name): value for name, value in state["networks"].items()})
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)


def _current(name: str) -> str:
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def optimiser_step(optimiser: torch.optim.Optimizer, loss: Tensor, *, clip: float | None = None) -> None:
    """Take one gradient step on a loss, with the norm of the gradients at most `clip`."""
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        torch.nn.utils.clip_grad_norm_([at for group in optimiser.param_groups for at in group["params"]], clip)
    optimiser.step()


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of losses."""
    return torch.stack(list(losses.values())).sum()


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Run the block without gradients for the weights of `networks`; gradients still pass through them."""
    for network in networks:
        network.requires_grad_(False)
    try:
        yield
    finally:
        for network in networks:
            network.requires_grad_(True)


def to_bytes(images: Tensor) -> Tensor:
    """Return images in [-1, 1] as uint8 in 0..255, on the same device."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).byte()
