"""A small training for tests: its data, its settings, and a program that runs it in a process of its own."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from click.testing import CliRunner, Result
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from wsiscore.cli import main
from wsiscore.generators import atst
from wsiscore.generators.ihcscoregan import Config
from wsiscore.generators.ihcscoregan.recipe import Recipe
from wsiscore.training.prepare import DatasetSettings, RenderedDataset
from wsiscore.training.record import CHECKPOINT
from wsiscore.training.settings import TrainSettings

DATASET = DatasetSettings(fields=16, side_px=96, mpp=0.5, seed=3)
TINY = {"blocks": 1} | {field.name: 4 for field in fields(Config) if field.name.endswith("width")}


def settings_of(steps: int, crop_px: int = 32, batch: int = 2, **config: Any) -> TrainSettings:
    """Return the settings of a training of a network as small as it gets."""
    return TrainSettings("ihcscoregan", asdict(Config(**{**TINY, **config})), steps, batch, crop_px, seed=1)


def paths(folder: Path) -> tuple[Path, ...]:
    """Return the tiles below a folder."""
    return tuple(sorted(folder.rglob("*.png")))


def weights(folder: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights in the checkpoint of a training, by name."""
    state = torch.load(folder / CHECKPOINT, weights_only=True)["recipe"]["networks"]
    return {name: value.numpy() for name, value in state.items()}


def run(*words: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


_PROGRAM = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path[:0] = [{tests!r}, {root!r}]
import training_parts
from training_parts import DATASET, paths, settings_of
from wsiscore.training.data import TrainingData
from wsiscore.training.loop import train
from wsiscore.training.prepare import RenderedDataset
if __name__ == "__main__":
    {before}
    train(Path(sys.argv[1]), settings_of({steps}, batch={batch}),
          TrainingData(RenderedDataset(DATASET, Path({dataset!r})), paths(Path({tiles!r}))),
          device="cpu", every={every}, workers={workers})
"""


def program(
    dataset: RenderedDataset,
    tiles: Path,
    steps: int,
    *,
    batch: int = 2,
    every: int = 3,
    workers: int = 0,
    before: str = "pass",
) -> str:
    """Return a program that takes the folder of a training and trains there, after the statement `before`."""
    here = Path(__file__).resolve().parent
    return _PROGRAM.format(
        tests=str(here),
        root=str(here.parent),
        dataset=str(dataset.folder),
        tiles=str(tiles),
        steps=steps,
        batch=batch,
        every=every,
        workers=workers,
        before=before,
    )


def signal_after(steps: int, number: int, *, rank: str = "0", group: bool = False) -> None:
    """Make this process send a signal to itself, or to its whole group, in the step after so many."""
    step = Recipe.step

    def signalling(self: Recipe, batch: Any, at: int) -> dict[str, Any]:
        if at == steps and os.environ.get("RANK", "0") == rank:
            (os.killpg if group else os.kill)(os.getpid(), number)
        return step(self, batch, at)

    Recipe.step = signalling  # type: ignore[method-assign]


def die_after(steps: int) -> None:
    """Make this process kill itself, as a power cut would, in the step after so many."""
    signal_after(steps, signal.SIGKILL)


def keep_gradients(path: Path) -> None:
    """Save the gradients of the first step of any optimiser, in one piece, with the rank of the process.

    ``<path>-own-<rank>.npy`` has them as this process found them, ``<path>-<rank>.npy`` as the step takes them.
    """

    def save(name: str, optimiser: torch.optim.Optimizer) -> None:
        hooks.pop(name).remove()
        parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        gradients = np.concatenate([parameter.grad.numpy().ravel() for parameter in parameters])
        np.save(path.with_name(f"{path.name}-{name}{os.environ.get('RANK', '0')}.npy"), gradients)

    hooks = {
        "own-": register_optimizer_step_pre_hook(lambda optimiser, *_: save("own-", optimiser)),
        "": register_optimizer_step_post_hook(lambda optimiser, *_: save("", optimiser)),
    }


SMALL_ATST = atst.Config(width=4, encoder_width=16, depth=4, heads=2, discriminator_width=4, blocks=1)


def atst_recipe(config=SMALL_ATST, steps=8, start=None):
    """Return a training of a small transformer."""
    return atst.Recipe(config, steps=steps, seed=0, device="cpu", tiles=False, start=start)
