"""What the command trains on: tiles, slides, aligned pictures or rendered fields, split and laid out in its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from wsiscore.errors import SlideError, TruthError
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.models.contract import GeneratorSpec
from wsiscore.models.registry import family
from wsiscore.synthetic.stains import STAINS
from wsiscore.tiles import TileList
from wsiscore.training.data import Sampler, TrainingData
from wsiscore.training.folds import Split, read_slide_cases, slide_of_tile, split_by_case, write_split
from wsiscore.training.mask_files import find_masks
from wsiscore.training.pairs import PairSampler, PairTrainingData, find_aligned, find_aligned_slides, tile_aligned
from wsiscore.training.prepare import DatasetSettings, PairDatasetSettings, RenderedDataset, render_dataset
from wsiscore.training.truth_data import TruthSampler, TruthTrainingData, read_truth
from wsiscore.training.truth_files import TruthOptions, Unmarked
from wsiscore.training.wide import WideDatasetSettings

__all__ = ["TILE_PX", "AnySampler", "AnyTrainingData", "DataOptions", "prepare_data"]

AnyTrainingData = TrainingData | PairTrainingData | TruthTrainingData
AnySampler = Sampler | PairSampler | TruthSampler

TILE_PX = 256
"""Side of the tiles cut from slides, and of rendered fields."""

_FIELD_CROPS = 2.8  # side of a rendered field, in crops, where crops have several sizes
_CACHE, _EARLIER_CACHE = "cache", "pool"

Tiler = Callable[[Path, Path, float, int], Path]
"""Cuts a slide into tiles below a folder, at a resolution (µm/px) and a side (px); returns the path of tiles.json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """Options of ``wsiscore train`` that decide what it trains on.

    Parameters
    ----------
    crop_px
        Side of a training crop.
    fields
        Number of rendered fields.
    fields_seed
        Their seed.
    cache
        Folder of the rendered fields; by default one in the folder of the training.
    mpp
        Resolution of slides that do not say theirs, µm/px.
    unique
        Greatest number of tiles to train on; None: all.
    cases
        CSV as for `read_slide_cases`.
    order, test_fraction, folds, fold, split_seed
        As for `split_by_case`.
    masks, mask_mpp, mask_size_px
        As for `find_masks`.
    truth
        Folders of annotated pictures, as for `read_truth`; none: rendered fields and unlabelled tiles.
    unmarked, recolour, regions, types
        As for `TruthOptions`.
    rendered_fraction
        Fraction of the steps on rendered fields where there is truth.
    appearances
        ``usual`` kinds of rendered fields, or ``wide``.
    workers
        Number of processes that render.
    """

    crop_px: int
    fields: int
    fields_seed: int
    cache: Path | None = None
    mpp: float | None = None
    unique: int | None = None
    cases: Path | None = None
    order: str = "random"
    test_fraction: float = 0.0
    folds: int = 0
    fold: int = 0
    split_seed: int = 0
    masks: Path | None = None
    mask_mpp: float | None = None
    mask_size_px: tuple[int, int] | None = None
    truth: tuple[Path, ...] = ()
    unmarked: Unmarked = "ground"
    recolour: bool = False
    regions: Path | None = None
    types: Mapping[int, Kind] = field(default_factory=dict)
    rendered_fraction: float = 0.36
    appearances: Literal["usual", "wide"] = "usual"
    workers: int = 0


def prepare_data(
    spec: GeneratorSpec, paths: Sequence[Path], out: Path, options: DataOptions, tile: Tiler
) -> AnyTrainingData:
    """Find, cut, split and render what a family is trained on.

    Parameters
    ----------
    spec
        Of the generator.
    paths
        The inputs: slides or folders of tiles, or aligned pictures for a family with `Family.pairs`; may be empty.
    out
        Folder of the training; gets ``split.csv``, ``tiles/`` and, by default, ``cache/``.
    options
        How.
    tile
        What cuts a slide into tiles.

    Raises
    ------
    SlideError, RoiError, TruthError, OutputError
        If something cannot be read, split or written.
    """
    if options.truth:
        return _truth_data(spec, paths, out, options)
    return (_pair_data if family(spec.family).pairs else _tile_data)(spec, paths, out, options, tile)


def _tile_data(
    spec: GeneratorSpec, paths: Sequence[Path], out: Path, options: DataOptions, tile: Tiler
) -> TrainingData:
    masks = None
    if options.masks:
        masks = find_masks(
            options.masks, spec.mpp, options.crop_px, file_mpp=options.mask_mpp, size_px=options.mask_size_px
        )
    tiles: tuple[Path, ...] = ()
    if paths:
        split = _split([png for path in paths for png in _tiles_of(path, spec, out, tile)], slide_of_tile, options)
        write_split(out / "split.csv", split)
        tiles = split.train
    return TrainingData(_rendered(_settings(TILE_PX, spec, options), out, options), tiles, masks)


def _settings(side_px: int, spec: GeneratorSpec, options: DataOptions) -> DatasetSettings:
    kind = WideDatasetSettings if options.appearances == "wide" else DatasetSettings
    return kind(options.fields, side_px, spec.mpp, options.fields_seed)


def _truth_data(spec: GeneratorSpec, paths: Sequence[Path], out: Path, options: DataOptions) -> TruthTrainingData:
    if not family(spec.family).from_truth:
        raise TruthError(f"{spec.family} cannot be trained on annotated nuclei; leave out --truth")
    if paths:
        raise TruthError(f"{paths[0]}: with --truth there is no other INPUT; give one or the other")
    side_px = max(TILE_PX, round(options.crop_px * _FIELD_CROPS))
    rendered = _rendered(_settings(side_px, spec, options), out, options)
    how = TruthOptions(options.mpp, options.unmarked, options.recolour, options.regions, options.types)
    return read_truth(options.truth, how, rendered, options.rendered_fraction)


def _pair_data(
    spec: GeneratorSpec, paths: Sequence[Path], out: Path, options: DataOptions, tile: Tiler
) -> PairTrainingData:
    names, derived = family(spec.family).pairs, family(spec.family).derived
    side_px = max(TILE_PX, options.crop_px)
    if not paths:
        if missing := [name for name in names if name not in STAINS]:
            raise SlideError(f"pictures called {missing[0]!r} cannot be rendered; give aligned ones as INPUT")
        settings = PairDatasetSettings(options.fields, side_px, spec.mpp, options.fields_seed, names)
        return PairTrainingData(names, rendered=_rendered(settings, out, options), derived=derived)
    slides = {path: find_aligned_slides(path, names) for path in paths}
    for files in chain(*slides.values()):
        first = tile(files[0], out / "tiles" / names[0], spec.mpp, side_px)
        for name, file in zip(names[1:], files[1:], strict=True):
            folder = out / "tiles" / name / first.parent.name / "tiles"
            tile_aligned(TileList.read(first), file, folder, options.mpp)
    folders = dict.fromkeys(out / "tiles" if slides[path] else path for path in paths)
    of = {found.files[0]: found for folder in folders for found in find_aligned(folder, names)}
    split = _split(list(of), lambda file: of[file].slide, options)
    write_split(out / "split.csv", split, lambda file: of[file].slide)
    return PairTrainingData(names, tuple(of[file] for file in split.train), derived=derived)


def _rendered(settings: DatasetSettings, out: Path, options: DataOptions) -> RenderedDataset:
    default = out / (_EARLIER_CACHE if (out / _EARLIER_CACHE).is_dir() else _CACHE)
    return render_dataset(options.cache or default, settings, workers=options.workers, progress=True)


def _split(tiles: list[Path], slide_of: Callable[[Path], str], options: DataOptions) -> Split:
    return split_by_case(
        tiles,
        slide_of=slide_of,
        cases=read_slide_cases(options.cases) if options.cases else None,
        folds=options.folds,
        fold=options.fold,
        order=options.order,
        test_fraction=options.test_fraction,
        seed=options.split_seed,
        unique=options.unique,
    )


def _tiles_of(path: Path, spec: GeneratorSpec, out: Path, tile: Tiler) -> list[Path]:
    """Return the PNGs in a folder of tiles; a slide is cut into tiles first, beside the training."""
    if path.is_dir() and (tiles := sorted(path.rglob("*.png"))):
        return tiles
    return sorted((tile(path, out / "tiles", spec.mpp, TILE_PX).parent / "tiles").glob("*.png"))
