"""Rendered datasets: fields with known nuclei, rendered once by several processes and kept on disk."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from wsiscore.errors import OutputError
from wsiscore.files import locked, remove_parts, replacing
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import FieldTruth, render_field
from wsiscore.synthetic.ground import Layout
from wsiscore.synthetic.pairs import render_pair
from wsiscore.training.targets import OTHERS

__all__ = [
    "DatasetSettings",
    "PairDatasetSettings",
    "RenderedDataset",
    "cells_of",
    "random_appearance",
    "render_dataset",
]

_SETTINGS = "dataset.json"
_EARLIER = "pool.json"  # the same settings, as earlier versions wrote them
_BLOCK = 16  # fields a file
_MARGIN_UM = 14.0  # rendered around a field and cut off: nuclei centred outside have no known class
_GLIAL = 0.3  # fraction of fields whose tumour has small, long, pale nuclei
_PALE = 0.3  # fraction whose negative nuclei are large and hardly differ from a grey background
_VIOLET = 0.2  # fraction of the other fields whose stroma takes much hematoxylin, in blotches
_MAGNIFICATION = 0.1  # standard deviation of the logarithm of a field's scale
_INDEX = (0.6, 1.1)  # of the beta distribution of the index: many fields near 0, some near 100 %
_FINER = 0.35  # fraction of fields rendered at twice the resolution and averaged, as slides are read

Picture = npt.NDArray[np.uint8]
CellMap = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class DatasetSettings:
    """What a rendered dataset holds; the same settings give the same pixels.

    Parameters
    ----------
    fields
        Number of fields.
    side_px
        Height and width of a field.
    mpp
        Mean resolution, µm/px; each field varies about it.
    seed
        Seed of all fields.
    """

    fields: int
    side_px: int
    mpp: float
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays of a field: the picture first, the cells last."""
        return ("rgb", "cells")

    def render(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return field `number`: (side, side, 3) pictures by name, and its cells as in `RenderedDataset.field`."""
        rng = np.random.default_rng([self.seed, number])
        mpp = self.mpp * float(np.exp(rng.normal(0, _MAGNIFICATION)))
        factor = 2 if rng.random() < _FINER else 1
        margin = round(_MARGIN_UM / mpp)
        side = (self.side_px + 2 * margin) * factor
        appearance, nests = random_appearance(rng)
        index = 100 * float(rng.beta(*_INDEX))
        layout = Layout.random(rng, side, side, mpp / factor)
        if not nests:
            layout = replace(layout, tumour=np.ones_like(layout.tumour))
        field = render_field(rng, side, side, mpp / factor, appearance=appearance, index=index, layout=layout)
        rgb = cv2.resize(field.rgb, (side // factor, side // factor), interpolation=cv2.INTER_AREA)
        inner = np.s_[margin : margin + self.side_px, margin : margin + self.side_px]
        return {"rgb": rgb[inner].astype(np.uint8), "cells": cells_of(field)[::factor, ::factor][inner]}


@dataclass(frozen=True, slots=True)
class PairDatasetSettings(DatasetSettings):
    """What a rendered dataset of aligned pictures holds.

    Parameters
    ----------
    stains
        Names of the pictures, of `wsiscore.synthetic.stains.STAINS`; the input first.
    """

    stains: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The stains, and the cells last."""
        return (*self.stains, "cells")

    def render(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return field `number` in every stain, and its cells."""
        rng = np.random.default_rng([self.seed, number])
        mpp = self.mpp * float(np.exp(rng.normal(0, _MAGNIFICATION)))
        margin = round(_MARGIN_UM / mpp)
        pair = render_pair(rng, *(self.side_px + 2 * margin,) * 2, mpp, self.stains)
        inner = np.s_[margin : margin + self.side_px, margin : margin + self.side_px]
        return {name: picture[inner] for name, picture in pair.pictures.items()} | {"cells": cells_of(pair)[inner]}


@dataclass(frozen=True, slots=True)
class RenderedDataset:
    """Rendered fields on disk, read as they are needed.

    Parameters
    ----------
    settings
        What it holds.
    folder
        Where it is.
    """

    settings: DatasetSettings
    folder: Path

    def __len__(self) -> int:
        return self.settings.fields

    def field(self, number: int) -> tuple[Picture, CellMap]:
        """Return (side, side, 3) RGB and its cells, (side, side): 0 ground, +n positive, −n negative nucleus n."""
        names = self.settings.names
        return self.array(number, names[0]), self.array(number, names[-1])

    def array(self, number: int, name: str) -> npt.NDArray[Any]:
        """Return one array of a field, by its name in `DatasetSettings.render`."""
        block, row = divmod(number, _BLOCK)
        array: npt.NDArray[Any] = np.load(self.folder / f"{block:05d}.{name}.npy", mmap_mode="r")[row]
        return array


def render_dataset(
    folder: Path, settings: DatasetSettings, *, workers: int = 1, progress: bool = False
) -> RenderedDataset:
    """Render a dataset, or what is missing of it; one process at a time does.

    Parameters
    ----------
    folder
        Where it is, or is written to.
    settings
        What it holds.
    workers
        Number of processes.
    progress
        Whether to show progress on a terminal.

    Raises
    ------
    OutputError
        If the folder holds a dataset of other settings, or cannot be written.
    """
    try:
        with locked(folder):
            remove_parts(folder)
            _check_settings(folder, settings)
            blocks = range(-(-settings.fields // _BLOCK))
            missing = [block for block in blocks if not (folder / f"{block:05d}.cells.npy").exists()]
            bar = tqdm(total=len(missing), desc="rendering", unit="block", disable=None if progress else True)
            with bar:
                for _ in _each(partial(_render_block, folder, settings), missing, workers):
                    bar.update()
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder} cannot be written: {error}; give another folder") from error
    return RenderedDataset(settings, folder)


def _check_settings(folder: Path, settings: DatasetSettings) -> None:
    """Raise an OutputError if the folder holds other settings; write them if it holds none."""
    asked = json.loads(json.dumps(asdict(settings)))
    path = next((folder / name for name in (_SETTINGS, _EARLIER) if (folder / name).exists()), None)
    if path is None:
        with replacing(folder / _SETTINGS) as part:
            part.write_text(json.dumps(asked), encoding="utf-8")
        return
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise OutputError(f"{path} holds no settings of a rendered dataset; delete {folder} or give another folder")
    for name in sorted(held.keys() | asked.keys()):
        if held.get(name) != asked.get(name):
            found = f"{name} {held.get(name)}, wanted {asked.get(name)}"
            raise OutputError(f"{folder} holds rendered fields of other settings ({found}); give another folder")


def _each(work: partial[None], blocks: list[int], workers: int) -> Iterator[None]:
    if workers < 2 or len(blocks) < 2:
        yield from map(work, blocks)
        return
    # A forked child of a process with threads may hang, so the children are spawned.
    executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_ignore_interrupt)
    try:
        for future in as_completed([executor.submit(work, block) for block in blocks]):
            yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def _ignore_interrupt() -> None:
    """Ignore Ctrl-C, which all processes of a terminal receive; the parent handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _render_block(folder: Path, settings: DatasetSettings, block: int) -> None:
    cv2.setNumThreads(1)
    last = min((block + 1) * _BLOCK, settings.fields)
    fields = [settings.render(number) for number in range(block * _BLOCK, last)]
    for name in settings.names:  # the cells last: they mark the block as done
        with replacing(folder / f"{block:05d}.{name}.npy") as part, part.open("wb") as file:
            np.save(file, np.stack([field[name] for field in fields]))


def random_appearance(rng: np.random.Generator) -> tuple[Appearance, bool]:
    """Return a random appearance, and whether its tumour grows in nests in stroma or everywhere.

    Some are of tumours that `Appearance.random` seldom gives and laboratories often see.
    """
    appearance = Appearance.random(rng, float(rng.uniform(0.3, 1)))
    kind = rng.random()
    if kind < _GLIAL:
        return _glial(rng, appearance), False
    if kind < _GLIAL + _PALE:
        return _pale(rng, appearance), False
    if rng.random() < _VIOLET:
        appearance = replace(appearance, stroma_od=float(rng.uniform(0.03, 0.13)), texture=float(rng.uniform(0.5, 1)))
    return appearance, True


def _glial(rng: np.random.Generator, appearance: Appearance) -> Appearance:
    """Return an appearance with small, long, irregular and pale nuclei, as in glioma."""
    return replace(
        appearance,
        diameter_um=float(rng.uniform(4, 8.5)),
        diameter_spread=float(rng.uniform(0.15, 0.3)),
        elongation=float(rng.uniform(0.3, 1.2)),
        irregularity=float(rng.uniform(0.03, 0.1)),
        nuclear_od=appearance.nuclear_od * float(rng.uniform(0.45, 1)),
        density_mm2=float(rng.uniform(2500, 6000)),
        stroma_mm2=float(rng.uniform(50, 500)),
        ghosts_mm2=0.0,  # what is blurred there is a nucleus
        debris_mm2=float(rng.uniform(0, 10)),  # and so is what is small and brown
    )


def _pale(rng: np.random.Generator, appearance: Appearance) -> Appearance:
    """Return an appearance with vesicular negative nuclei, so pale that little but edge and nucleoli is seen."""
    level = float(rng.uniform(170, 240))
    return replace(
        appearance,
        glass=(level, level * float(rng.uniform(0.97, 1.01)), level * float(rng.uniform(0.95, 1.02))),
        diameter_um=float(rng.uniform(7, 14)),
        diameter_spread=float(rng.uniform(0.12, 0.22)),
        density_mm2=float(rng.uniform(2000, 5000)),
        nuclear_od=float(rng.uniform(0.025, 0.13)),
        cytoplasm_od=float(rng.uniform(0.005, 0.02)),
        stroma_od=float(rng.uniform(0.005, 0.03)),
        texture=float(rng.uniform(0.2, 0.5)),
        refraction=float(rng.uniform(-0.03, 0.02)),  # light or dark borders between cells
        background_od=float(rng.uniform(0, 0.02)),
        blush_od=float(rng.uniform(0, 0.03)),
        stray=float(rng.uniform(0, 0.03)),
        ghosts_mm2=0.0,
        noise=float(rng.uniform(0.3, 1.5)),
    )


def cells_of(field: FieldTruth) -> CellMap:
    """Return the nuclei centred in a field as cells, (H, W)."""
    signed = np.zeros(max(int(field.labels.max()), len(field.x_um)) + 1, np.int16)
    numbers = np.arange(1, len(field.x_um) + 1) + np.where(field.counted, 0, OTHERS)
    signed[1 : len(field.x_um) + 1] = np.where(field.positive, numbers, -numbers)
    cells: CellMap = signed[field.labels]
    return cells
