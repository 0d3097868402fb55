"""A pool of rendered fields on disk: painted once, by several processes, and drawn from for the whole training."""

from __future__ import annotations

import json
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
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import FieldTruth, render_field
from wsiscore.synthetic.ground import Layout
from wsiscore.synthetic.pairs import render_pair
from wsiscore.training.targets import OTHERS

__all__ = ["PairPoolSettings", "Pool", "PoolSettings", "render_pool"]

_ABOUT = "pool.json"
_BLOCK = 16  # fields a file
_RIM_UM = 14.0
_GLIAL = 0.3  # share of fields whose tumour has small, long, pale nuclei
_GHOSTLY = 0.3  # and of those where negative nuclei are large and hardly differ from a grey ground
_VIOLET = 0.2  # and, of the others, where the stroma takes much hematoxylin, in blotches
_MAGNIFICATION = 0.1  # standard deviation of the logarithm of a field's scale
_INDEX = (0.6, 1.1)  # of the beta distribution of the index: many fields near 0, some near 100 %
_FINER = 0.35  # share of fields painted at a finer scale and averaged down, as slides are read

Picture = npt.NDArray[np.uint8]
CellMap = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What a pool holds; the same settings give the same pixels.

    Parameters
    ----------
    fields
        How many fields.
    side_px
        Their height and width.
    mpp
        Micrometres per pixel, about which each field's own lies.
    seed
        Of the first field; the next ones follow from it.
    """

    fields: int
    side_px: int
    mpp: float
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """What a field consists of: its picture first, its cells last."""
        return ("rgb", "cells")

    def paint(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return field `number`: (side, side, 3) pictures by name, and its cells as `Pool.field` gives them."""
        rng = np.random.default_rng([self.seed, number])
        mpp = self.mpp * float(np.exp(rng.normal(0, _MAGNIFICATION)))
        factor = 2 if rng.random() < _FINER else 1
        rim = round(_RIM_UM / mpp)  # the class of nuclei centred outside is not known: they are cut off
        painted = (self.side_px + 2 * rim) * factor
        look, nests = _look(rng)
        index = 100 * float(rng.beta(*_INDEX))
        layout = Layout.random(rng, painted, painted, mpp / factor)
        if not nests:
            layout = replace(layout, tumour=np.ones_like(layout.tumour))
        field = render_field(rng, painted, painted, mpp / factor, appearance=look, index=index, layout=layout)
        rgb = cv2.resize(field.rgb, (painted // factor, painted // factor), interpolation=cv2.INTER_AREA)
        inner = np.s_[rim : rim + self.side_px, rim : rim + self.side_px]
        return {"rgb": rgb[inner].astype(np.uint8), "cells": _cells(field)[::factor, ::factor][inner]}


@dataclass(frozen=True, slots=True)
class PairPoolSettings(PoolSettings):
    """What a pool of aligned pictures holds.

    Parameters
    ----------
    stains
        Names of the pictures, of `wsiscore.rendering.STAINS`; the input first.
    """

    stains: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The stains, and the cells last."""
        return (*self.stains, "cells")

    def paint(self, number: int) -> dict[str, npt.NDArray[Any]]:
        """Return field `number` in every stain, and its cells."""
        rng = np.random.default_rng([self.seed, number])
        mpp = self.mpp * float(np.exp(rng.normal(0, _MAGNIFICATION)))
        rim = round(_RIM_UM / mpp)
        pair = render_pair(rng, *(self.side_px + 2 * rim,) * 2, mpp, self.stains)
        inner = np.s_[rim : rim + self.side_px, rim : rim + self.side_px]
        return {name: picture[inner] for name, picture in pair.pictures.items()} | {"cells": _cells(pair)[inner]}


@dataclass(frozen=True, slots=True)
class Pool:
    """A rendered pool, read from disk as it is needed.

    Parameters
    ----------
    settings
        What it holds.
    folder
        Where.
    """

    settings: PoolSettings
    folder: Path

    def __len__(self) -> int:
        return self.settings.fields

    def field(self, number: int) -> tuple[Picture, CellMap]:
        """Return (side, side, 3) RGB and its cells, (side, side): 0 ground, +n positive, −n negative nucleus n."""
        names = self.settings.names
        return self.array(number, names[0]), self.array(number, names[-1])

    def array(self, number: int, name: str) -> npt.NDArray[Any]:
        """Return one of the arrays of a field, as `PoolSettings.paint` names them."""
        block, row = divmod(number, _BLOCK)
        array: npt.NDArray[Any] = np.load(self.folder / f"{block:05d}.{name}.npy", mmap_mode="r")[row]
        return array


def render_pool(folder: Path, settings: PoolSettings, *, workers: int = 1, progress: bool = False) -> Pool:
    """Render a pool, or what is missing of it.

    Parameters
    ----------
    folder
        Where it lies or is to lie.
    settings
        What it holds.
    workers
        Processes to render with.
    progress
        Whether to show progress on a terminal.

    Raises
    ------
    OutputError
        If the folder holds a pool of other settings, or cannot be written.
    """
    about = json.dumps(asdict(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _ABOUT
        if path.exists() and path.read_text(encoding="utf-8") != about:
            raise OutputError(f"{folder} holds rendered fields of other settings; give another folder")
        path.write_text(about, encoding="utf-8")
        missing = [b for b in range(-(-settings.fields // _BLOCK)) if not (folder / f"{b:05d}.cells.npy").exists()]
        bar = tqdm(total=len(missing), desc="rendering", unit="block", disable=None if progress else True)
        with bar:
            for _ in _each(partial(_render_block, folder, settings), missing, workers):
                bar.update()
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{folder} cannot be written: {error}; give another folder") from error
    return Pool(settings, folder)


def _each(work: partial[None], blocks: list[int], workers: int) -> Iterator[None]:
    if workers < 2 or len(blocks) < 2:
        yield from map(work, blocks)
        return
    # A forked child of a process with threads may hang, so it starts afresh.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as executor:
        for future in as_completed([executor.submit(work, block) for block in blocks]):
            yield future.result()


def _render_block(folder: Path, settings: PoolSettings, block: int) -> None:
    cv2.setNumThreads(1)
    last = min((block + 1) * _BLOCK, settings.fields)
    fields = [settings.paint(number) for number in range(block * _BLOCK, last)]
    for name in settings.names:  # the cells last: they mark it done
        part = folder / f".{block:05d}.{name}.npy"
        np.save(part, np.stack([field[name] for field in fields]))
        part.replace(folder / f"{block:05d}.{name}.npy")


def _look(rng: np.random.Generator) -> tuple[Appearance, bool]:
    """Draw a look, and whether its tumour grows in nests amid stroma or everywhere.

    Some looks are of tumours that `Appearance.random` seldom draws and laboratories often see.
    """
    look = Appearance.random(rng, float(rng.uniform(0.3, 1)))
    kind = rng.random()
    if kind < _GLIAL:
        return _glial(rng, look), False
    if kind < _GLIAL + _GHOSTLY:
        return _ghostly(rng, look), False
    if rng.random() < _VIOLET:
        look = replace(look, stroma_od=float(rng.uniform(0.03, 0.13)), texture=float(rng.uniform(0.5, 1)))
    return look, True


def _glial(rng: np.random.Generator, look: Appearance) -> Appearance:
    """Return a look with nuclei that are small, long, irregular and pale, as a glioma's."""
    return replace(
        look,
        diameter_um=float(rng.uniform(4, 8.5)),
        diameter_spread=float(rng.uniform(0.15, 0.3)),
        elongation=float(rng.uniform(0.3, 1.2)),
        irregularity=float(rng.uniform(0.03, 0.1)),
        nuclear_od=look.nuclear_od * float(rng.uniform(0.45, 1)),
        density_mm2=float(rng.uniform(2500, 6000)),
        stroma_mm2=float(rng.uniform(50, 500)),
        ghosts_mm2=0.0,  # what is blurred there is a nucleus
        debris_mm2=float(rng.uniform(0, 10)),  # and so is what is small and brown
    )


def _ghostly(rng: np.random.Generator, look: Appearance) -> Appearance:
    """Return a look with vesicular negative nuclei so pale that little but their edge and nucleoli is seen."""
    level = float(rng.uniform(170, 240))
    return replace(
        look,
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


def _cells(field: FieldTruth) -> CellMap:
    """Return the nuclei centred in a field as cells, (H, W)."""
    signed = np.zeros(max(int(field.labels.max()), len(field.x_um)) + 1, np.int16)
    numbers = np.arange(1, len(field.x_um) + 1) + np.where(field.counted, 0, OTHERS)
    signed[1 : len(field.x_um) + 1] = np.where(field.positive, numbers, -numbers)
    cells: CellMap = signed[field.labels]
    return cells
