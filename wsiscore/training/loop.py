"""The training loop: steps and checkpoints. The losses are those of the family's recipe."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from tqdm import tqdm

from wsiscore.errors import ModelError
from wsiscore.models.card import read_card
from wsiscore.models.contract import Recipe
from wsiscore.models.registry import family
from wsiscore.models.store import load_model
from wsiscore.training.data import batches
from wsiscore.training.inputs import AnySampler, AnyTrainingData
from wsiscore.training.interrupts import TrainingInterruptedError, stop_between_steps
from wsiscore.training.processes import Processes, join_processes
from wsiscore.training.record import TrainingRecord
from wsiscore.training.settings import TrainSettings

__all__ = ["train"]


def train(
    folder: Path,
    settings: TrainSettings,
    data: AnyTrainingData,
    *,
    start: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    every: int = 500,
    progress: bool = False,
) -> Recipe:
    """Train, or continue an interrupted training; on the CPU, with as many threads, both give the same weights.

    Under torchrun every process takes a part of each step, and the first writes.

    Parameters
    ----------
    folder
        Gets ``checkpoint.pt``, ``losses.csv`` and ``sheets/<step>.png``.
    settings, data
        What the training does, and what it is trained on.
    start
        Folder of a model to start from, if any.
    device
        As for `wsiscore.networks.generator.pick_device`.
    workers
        Processes that sample batches ahead; 0 samples in this one.
    every
        Steps between checkpoints, and between sheets.
    progress
        Whether to show progress on a terminal.

    Returns
    -------
    The trained recipe.

    Raises
    ------
    TrainingInterruptedError
        After SIGINT or SIGTERM, once the step is done and a checkpoint is written.
    OutputError
        If the folder holds a training of other settings, or cannot be written.
    ModelError
        If there is no such family, it cannot be trained, the device is missing, or `start` or the side of an item
        does not fit.
    """
    with join_processes(device) as processes:
        recipe = _recipe(settings, data, start, processes.device)
        record = TrainingRecord(folder, settings, data, processes.count, recipe)
        done = record.resume()
        first = processes.rank * settings.batch
        sampler = data.sampler(recipe, batch=settings.batch, crop_px=settings.crop_px, seed=settings.seed, first=first)
        quiet = None if progress and processes.first else True
        with tqdm(total=settings.steps, initial=done, unit="step", disable=quiet) as bar:
            try:
                _steps(record, sampler, range(done, settings.steps), processes, workers=workers, every=every, bar=bar)
            except BaseException:
                if processes.first and record.rows:
                    record.write_losses()
                raise
        return recipe


def _steps(
    record: TrainingRecord,
    sampler: AnySampler,
    steps: range,
    processes: Processes,
    *,
    workers: int,
    every: int,
    bar: tqdm[Any],
) -> None:
    """Take the steps that are left; end early after a signal to any process."""
    recipe = record.recipe
    if processes.count > 1:
        for optimiser in recipe.optimisers:
            optimiser.register_step_pre_hook(processes.average_gradients)
    buffers = processes.synchronise(recipe)
    with stop_between_steps() as request, closing(batches(sampler, steps, workers)) as stream:
        for number, batch in zip(steps, stream, strict=True):
            losses = recipe.step(batch, number)
            processes.average(buffers)
            bar.update()
            step, signal_number = number + 1, processes.agree(request.number)
            last = step == steps.stop
            if processes.first:
                record.note(step, {name: float(loss) for name, loss in losses.items()})
                if step % every == 0 or last:
                    record.write_sheet(step, sampler)
                if step % every == 0 or last or signal_number:
                    record.save(step)
            if signal_number:
                raise TrainingInterruptedError(signal_number, f"the training ended after step {step} of {steps.stop}")


def _recipe(settings: TrainSettings, data: AnyTrainingData, start: Path | None, device: str) -> Recipe:
    own = family(settings.family)
    if own.recipe is None:
        raise ModelError(f"the family {settings.family!r} cannot be trained: it has no weights")
    weights: Mapping[str, Any] | None = None
    if start is not None:
        if read_card(start).family != settings.family:
            raise ModelError(f"{start} is of the family {read_card(start).family!r}, wanted {settings.family!r}")
        weights = load_model(start, "cpu").weights()
    recipe = own.recipe(
        own.config(**settings.config),
        steps=settings.steps,
        seed=settings.seed,
        device=device,
        tiles=bool(data.tiles),
        start=weights,
    )
    if settings.crop_px % recipe.multiple_px:
        raise ModelError(
            f"{settings.family!r} with these options is trained on squares whose side is a multiple of"
            f" {recipe.multiple_px} px, got {settings.crop_px} px; give another --crop"
        )
    return recipe
