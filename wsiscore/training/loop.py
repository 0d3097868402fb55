"""The training loop: steps, checkpoints, curves and sheets. It knows no loss; a family's recipe does."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from wsiscore.errors import ModelError, OutputError
from wsiscore.files import replacing
from wsiscore.models.card import read_card
from wsiscore.models.contract import Recipe
from wsiscore.models.registry import family
from wsiscore.models.store import load_model
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.networks.generator import pick_device
from wsiscore.training.data import Draws, Sources, batches
from wsiscore.training.pairs import PairDraws, Pairs

__all__ = ["CHECKPOINT", "LOSSES", "TrainSettings", "train"]

CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.csv"
_SHOWN = 6  # items on a sheet


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What decides the weights, whatever the family.

    Parameters
    ----------
    family
        Name of the generator family.
    config
        Its `Config`, by field.
    steps, batch, crop_px
        Gradient steps, items a step (in each process), and the side of an item in pixels.
    seed
        Of the first weights and all that is drawn.
    start
        Model to start from: its weights' SHA-256, or None.
    """

    family: str
    config: Mapping[str, Any]
    steps: int
    batch: int
    crop_px: int
    seed: int
    start: str | None = None

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.crop_px) < 1:
            raise ValueError(f"steps, batch and crop_px are at least 1, got {self}")


def train(
    folder: Path,
    settings: TrainSettings,
    sources: Sources | Pairs,
    *,
    start: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    every: int = 500,
    progress: bool = False,
) -> Recipe:
    """Train, or go on with a training that was interrupted; on the CPU both give the same weights.

    Under torchrun every process takes a part of each step, and the first writes.

    Parameters
    ----------
    folder
        Gets ``checkpoint.pt``, ``losses.csv`` and ``sheets/<step>.png``.
    settings, sources
        What is learnt, and from what.
    start
        Folder of a model to start from, if any.
    device
        As for `wsiscore.networks.generator.pick_device`.
    workers
        Processes that draw batches ahead; 0 draws in this one.
    every
        Steps between checkpoints, and between sheets.
    progress
        Whether to show progress on a terminal.

    Returns
    -------
    The recipe, trained.

    Raises
    ------
    OutputError
        If the folder holds a training of other settings, or cannot be written.
    ModelError
        If there is no such family, it cannot be trained, the device is missing, or `start` or the side of an item
        does not fit.
    """
    with _processes(device) as (rank, world, device):
        recipe = _recipe(settings, sources, start, device)
        if world > 1:
            for optimiser in recipe.optimisers:
                optimiser.register_step_pre_hook(_average_gradients)
        run = _Run(folder, settings, sources, recipe, writes=rank == 0, every=every)
        done = run.resume()
        size, first = settings.batch, rank * settings.batch
        draws = sources.draws(recipe, batch=size, crop_px=settings.crop_px, seed=settings.seed, first=first)
        rest = range(done, settings.steps)
        bar = tqdm(total=settings.steps, initial=done, unit="step", disable=None if progress and rank == 0 else True)
        with bar, run:
            for number, batch in zip(rest, batches(draws, rest, workers), strict=True):
                losses = recipe.step(batch, number)
                run.after(number + 1, {name: float(loss) for name, loss in losses.items()}, draws)
                bar.update()
        return recipe


def _recipe(settings: TrainSettings, sources: Sources | Pairs, start: Path | None, device: str) -> Recipe:
    own = family(settings.family)
    if own.recipe is None:
        raise ModelError(f"the family {settings.family!r} has nothing to train")
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
        tiles=bool(sources.tiles),
        start=weights,
    )
    if settings.crop_px % recipe.multiple_px:
        raise ModelError(
            f"{settings.family!r} as it is set learns from squares whose side is a multiple of {recipe.multiple_px} px,"
            f" got {settings.crop_px} px; give another --crop"
        )
    return recipe


class _Run:
    """The folder of a training: what a step leaves there, and how a later call goes on from it."""

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        sources: Sources | Pairs,
        recipe: Recipe,
        *,
        writes: bool,
        every: int,
    ) -> None:
        self.folder, self.recipe, self.writes, self.every = folder, recipe, writes, every
        self.steps = settings.steps
        self.about = json.dumps({"settings": asdict(settings), "sources": sources.about()}, sort_keys=True)
        self.rows: list[dict[str, float]] = []

    def resume(self) -> int:
        """Restore the last checkpoint, if there is one, and return how many steps it has seen."""
        path = self.folder / CHECKPOINT
        if not path.exists():
            return 0
        held = read_checkpoint(path)
        if held["about"] != self.about:
            raise OutputError(
                f"{self.folder} holds a training with other settings ({_difference(held['about'], self.about)});"
                " give another folder, or the same settings to go on"
            )
        self.recipe.restore(held["recipe"])
        done = int(held["step"])
        if self.writes and (self.folder / LOSSES).exists():
            with (self.folder / LOSSES).open(newline="", encoding="utf-8") as file:
                self.rows = [
                    {name: float(value) for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                    if int(row["step"]) <= done
                ]
        return done

    def __enter__(self) -> None:
        try:
            (self.folder / "sheets").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.folder} cannot be written: {error.strerror}; give another folder") from error

    def __exit__(self, *_: object) -> None:
        if self.writes and self.rows:
            self._write_losses()

    def after(self, step: int, losses: Mapping[str, float], draws: Draws | PairDraws) -> None:
        """Keep a step's losses, and at every so many steps and the last the rest."""
        if not self.writes:
            return
        self.rows.append({"step": step, **losses})
        if step % self.every == 0 or step == self.steps:
            self._write_losses()
            self._write_sheet(step, draws)
            with replacing(self.folder / CHECKPOINT) as part:
                torch.save({"about": self.about, "step": step, "recipe": self.recipe.state()}, part)

    def _write_losses(self) -> None:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.folder / LOSSES) as part, part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, names, lineterminator="\n")
            table.writeheader()
            table.writerows({**row, "step": int(row["step"])} for row in self.rows)

    def _write_sheet(self, step: int, draws: Draws | PairDraws) -> None:
        """Write a picture of what is learnt: one row a kind, one column an item, always the same items."""
        batch = {name: at[:_SHOWN] for name, at in draws[0].items()}
        rows = [np.concatenate(list(at.numpy()), axis=2) for at in self.recipe.show(batch).values()]
        sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0)
        cv2.imwrite(str(self.folder / "sheets" / f"{step:06d}.png"), sheet[..., ::-1])


def _difference(held: str, asked: str) -> str:
    """Say which of two settings differ first."""
    flat = [
        {**parts["settings"], **parts["settings"]["config"], **parts["sources"]}
        for parts in map(json.loads, (held, asked))
    ]
    for name in sorted(set(flat[0]) | set(flat[1])):
        before, now = (part.get(name) for part in flat)
        if before != now and not isinstance(before, dict | list):
            return f"{name} {before}, now {now}"
    return "other sources"


@contextmanager
def _processes(device: str) -> Iterator[tuple[int, int, str]]:
    """Join the other processes of a torchrun, if there are any; give this one's rank, their number, its device."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield 0, 1, device
        return
    kind = pick_device(device).split(":")[0]
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield dist.get_rank(), world, device
    finally:
        dist.destroy_process_group()


def _average_gradients(optimiser: torch.optim.Optimizer, *_: Any) -> None:
    """Give every process the mean of all processes' gradients, so that their weights stay equal."""
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
