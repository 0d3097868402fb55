"""The processes of one training under torchrun, and the threads of each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wsiscore.networks.generator import pick_device
from wsiscore.networks.learner import Learner

__all__ = ["Processes", "automatic_threads", "join_processes"]

_TIMEOUT = timedelta(days=1)  # the others wait while the first renders fields or cuts tiles
_MAX_THREADS = 8


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a training, seen from one of them.

    Parameters
    ----------
    rank
        Number of this one; 0 writes all files.
    count
        Number of processes.
    device
        Where this one computes.
    """

    rank: int = 0
    count: int = 1
    device: str = "auto"

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        self.agree(0)

    def agree(self, number: int) -> int:
        """Return the largest number that any process gave."""
        if self.count == 1:
            return number
        largest = torch.tensor(number)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def synchronise(self, recipe: object) -> list[Tensor]:
        """Let the networks of all processes learn alike: gradients are averaged, batch statistics shared.

        On a GPU, layers of batch normalisation become `nn.SyncBatchNorm`. On the CPU torch has none: each process
        normalises by its own items, and the running statistics are averaged.

        Returns
        -------
        The buffers to average after each step with `average`.
        """
        if self.count == 1 or not isinstance(recipe, Learner):
            return []
        if self.device.startswith("cuda"):
            nn.SyncBatchNorm.convert_sync_batchnorm(recipe.networks)  # type: ignore[no-untyped-call]
            return []
        return [buffer for buffer in recipe.networks.buffers() if buffer.is_floating_point()]

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their mean over all processes."""
        for tensor in tensors:
            dist.all_reduce(tensor)
            tensor.div_(self.count)

    def average_gradients(self, optimiser: torch.optim.Optimizer, *_: Any) -> None:
        """Replace the gradients of an optimiser by their mean over all processes, so that the weights stay equal."""
        parameters = (parameter for group in optimiser.param_groups for parameter in group["params"])
        self.average([parameter.grad for parameter in parameters if parameter.grad is not None])


@contextmanager
def join_processes(device: str) -> Iterator[Processes]:
    """Join the other processes of a torchrun, if there are any.

    Parameters
    ----------
    device
        As for `wsiscore.networks.generator.pick_device`; of several GPUs each process takes its own.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(device=device)
        return
    device = _own_device(device)
    if dist.is_initialized():  # by a caller, who also leaves them
        yield Processes(dist.get_rank(), count, device)
        return
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(dist.get_rank(), count, device)
    finally:
        dist.destroy_process_group()


def _own_device(device: str) -> str:
    kind = pick_device(device).split(":")[0]
    return f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind


def automatic_threads(workers: int) -> int:
    """Return how many threads a training step takes by default.

    As many as OMP_NUM_THREADS, if that is set. Else one on two cores or fewer, where the threads of a convolution wait
    for each other whenever another program runs; else the cores that the `workers` leave to each process, 8 at most.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return 1 if cores <= 2 else max(1, min(cores - workers, _MAX_THREADS))
