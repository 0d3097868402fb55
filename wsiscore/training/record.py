"""The folder of a training: checkpoint, losses and sheets, and how a later call continues from them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from wsiscore.errors import OutputError
from wsiscore.files import replacing
from wsiscore.models.contract import Recipe
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.training.inputs import AnySampler, AnyTrainingData
from wsiscore.training.settings import TrainSettings

__all__ = ["CHECKPOINT", "LOSSES", "TrainingRecord"]

CHECKPOINT = "checkpoint.pt"
LOSSES = "losses.csv"
_FORMAT = 2  # of the checkpoint; 1 had no such number
_SHOWN = 6  # items on a sheet


class TrainingRecord:
    """What a training leaves in its folder.

    Parameters
    ----------
    folder
        Gets ``checkpoint.pt``, ``losses.csv`` and ``sheets/<step>.png``.
    settings, data
        What the training does, and what it is trained on.
    processes
        Number of processes that take each step together.
    recipe
        The training's state.
    """

    def __init__(
        self,
        folder: Path,
        settings: TrainSettings,
        data: AnyTrainingData,
        processes: int,
        recipe: Recipe,
    ) -> None:
        self.folder, self.recipe = folder, recipe
        held = {"settings": {**asdict(settings), "processes": processes}, "data": data.describe()}
        self.about = json.dumps(held, sort_keys=True)
        self.rows: list[dict[str, float]] = []
        self.saved = 0
        """Step of the checkpoint in the folder; 0 without one."""

    def resume(self) -> int:
        """Restore the last checkpoint, if there is one, and return its step.

        Raises
        ------
        OutputError
            If it is of an earlier version, of other settings or of another number of processes.
        ModelError
            If it cannot be read.
        """
        path = self.folder / CHECKPOINT
        if not path.exists():
            return 0
        held = read_checkpoint(path)
        if not isinstance(held, dict) or held.get("format") != _FORMAT:
            raise OutputError(
                f"{path} is not a checkpoint of this version of wsiscore; finish it with the version that wrote it,"
                " or give another folder"
            )
        if held["about"] != self.about:
            raise OutputError(
                f"{self.folder} holds a training with other settings ({_difference(held['about'], self.about)});"
                " give another folder, or the same settings to continue it"
            )
        self.recipe.restore(held["recipe"])
        self.saved = int(held["step"])
        if (self.folder / LOSSES).exists():
            with (self.folder / LOSSES).open(newline="", encoding="utf-8") as file:
                self.rows = [
                    {name: float(value) for name, value in row.items() if value}
                    for row in csv.DictReader(file)
                    if int(row["step"]) <= self.saved
                ]
        return self.saved

    def note(self, step: int, losses: Mapping[str, float]) -> None:
        """Keep the losses of a step."""
        self.rows.append({"step": step, **losses})

    def save(self, step: int) -> None:
        """Write losses and a checkpoint."""
        self.write_losses()
        state = {"format": _FORMAT, "about": self.about, "step": step, "recipe": self.recipe.state()}
        with replacing(self.folder / CHECKPOINT) as part, part.open("wb") as file:
            torch.save(state, file)
        self.saved = step

    def write_losses(self) -> None:
        """Write the losses of all steps so far."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with replacing(self.folder / LOSSES) as part, part.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, names, lineterminator="\n")
            table.writeheader()
            table.writerows({**row, "step": int(row["step"])} for row in self.rows)

    def write_sheet(self, step: int, sampler: AnySampler) -> None:
        """Write a picture of the current results: a row per kind, a column per item, always the same items."""
        batch = {name: at[:_SHOWN] for name, at in sampler[0].items()}
        rows = [np.concatenate(list(at.numpy()), axis=2) for at in self.recipe.show(batch).values()]
        sheet = np.concatenate(rows, axis=1).transpose(1, 2, 0)
        coded: Any = cv2.imencode(".png", sheet[..., ::-1])[1]
        with replacing(self.folder / "sheets" / f"{step:06d}.png") as part:
            part.write_bytes(coded.tobytes())


def _difference(held: str, asked: str) -> str:
    """Return in words the first setting that differs."""
    flat = []
    for parts in map(json.loads, (held, asked)):
        rendered = parts["data"]["rendered"] or {}
        fields = {f"rendered {name}": value for name, value in rendered.items()}
        flat.append({**parts["settings"], **parts["settings"]["config"], **fields})
    for name in sorted(set(flat[0]) | set(flat[1])):
        before, now = (part.get(name) for part in flat)
        if before != now and not isinstance(before, dict | list):
            return f"{name} {before}, now {now}"
    return "other data"
