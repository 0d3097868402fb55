"""A whole training: prepare the data, take the steps, write the model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from wsiscore.files import locked, remove_parts
from wsiscore.models.card import Card
from wsiscore.models.registry import family
from wsiscore.training.finish import write_trained
from wsiscore.training.inputs import DataOptions, Tiler, prepare_data
from wsiscore.training.interrupts import stop_at_once
from wsiscore.training.loop import train
from wsiscore.training.processes import automatic_threads, join_processes
from wsiscore.training.settings import TrainSettings

__all__ = ["RunOptions", "run_training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Options of ``wsiscore train`` that decide how a training runs.

    Parameters
    ----------
    steps, batch, seed
        As for `TrainSettings`.
    every, workers, device
        As for `train`.
    threads
        Threads of each step; None: `automatic_threads`.
    """

    steps: int
    batch: int
    seed: int
    every: int = 500
    workers: int = 0
    device: str = "auto"
    threads: int | None = None


def run_training(
    config: Any,
    name: str,
    start: Card | None,
    paths: Sequence[Path],
    out: Path,
    data_options: DataOptions,
    options: RunOptions,
    tile: Tiler,
    command: str,
) -> Path | None:
    """Train a family and write the model.

    Parameters
    ----------
    config, name
        Configuration and name of the family.
    start
        Card of the model to start from, if any.
    paths
        Inputs, as for `prepare_data`.
    out
        Folder of the training.
    data_options, options
        How.
    tile
        What cuts slides into tiles.
    command
        The command line, for the card.

    Returns
    -------
    The folder of the model; None in all processes of a torchrun but the first.

    Raises
    ------
    TrainingInterruptedError
        After SIGINT or SIGTERM.
    WsiscoreError
        If the data, the model to start from or the folder cannot be used.
    """
    began = time.monotonic()
    own = family(name)
    spec = start.spec if start else own.spec
    spec = own.adapt(config, spec) if own.adapt else spec
    torch.set_num_threads(options.threads or automatic_threads(options.workers))
    with stop_at_once(), join_processes(options.device) as processes, ExitStack() as stack:
        if processes.first:
            stack.enter_context(locked(out))
            remove_parts(out)
        else:
            processes.wait()  # the first process cuts and renders; the others find it done
        data = prepare_data(spec, paths, out, data_options, tile)
        if processes.first:
            processes.wait()
        sha256 = start.weights.sha256 if start and start.weights else None
        settings = TrainSettings(
            name, asdict(config), options.steps, options.batch, data_options.crop_px, options.seed, sha256
        )
        recipe = train(
            out,
            settings,
            data,
            start=start.folder if start else None,
            device=options.device,
            workers=options.workers,
            every=options.every,
            progress=True,
        )
        if not processes.first:
            return None
        several = f" in each of {processes.count} processes" if processes.count > 1 else ""
        minutes = (time.monotonic() - began) / 60
        note = f"Command: {command}{several} ({minutes:.0f} minutes on {options.device})."
        write_trained(out / "model", recipe, settings, data, spec, name=out.resolve().name, note=note)
        return out / "model"
