"""What a user may choose, one frozen class a step; the same for every slide of a run but for a manifest's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from wsiscore.engines.choice import Engine, Precision
from wsiscore.models.contract import Maps
from wsiscore.score import CUTOFF

__all__ = ["InferOptions", "ScoreOptions", "SlideFacts", "SlideOptions", "TileOptions", "chosen_json"]


@dataclass(frozen=True, slots=True)
class SlideFacts:
    """What a manifest says of a slide; each a text, empty if it is not given.

    Parameters
    ----------
    case
        Case or patient that the slide is of.
    specimen
        Kind of specimen.
    clone
        Clone of the antibody.
    platform
        Staining platform.
    """

    case: str = ""
    specimen: str = ""
    clone: str = ""
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlideOptions:
    """Which part of a slide is read, and where the results go.

    Parameters
    ----------
    out
        Folder of the results; by default ``wsiscore-out``, or where a given tile list or mosaic lies.
    roi
        Annotation file; by default one beside the slide, else tissue is found.
    roi_classes
        Classes or names to keep of it; by default all.
    exclude_classes
        Classes or names that are not scored, besides those of `wsiscore.roi.classes.NOT_SCORED`.
    mpp
        Micrometres per pixel of the slide, where its file does not say.
    slide
        The slide that a tile list or mosaic is of, if it was moved.
    name
        Name of the slide's folder; by default the stem of its file.
    distinct
        Whether another slide of the run has that stem too, so that digits of the path's hash are added.
    facts
        What is known of the slide.
    threads
        Threads of the process that works on it; by default those of its processors.
    """

    out: Path | None = None
    roi: Path | None = None
    roi_classes: tuple[str, ...] = ()
    exclude_classes: tuple[str, ...] = ()
    mpp: float | None = None
    slide: Path | None = None
    name: str = ""
    distinct: bool = False
    facts: SlideFacts = SlideFacts()
    threads: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TileOptions(SlideOptions):
    """How tiles are laid over the regions, as in `wsiscore.tiles.TileGrid`.

    Parameters
    ----------
    tile_mpp
        Micrometres per pixel of the tiles.
    tile_px, margin_px
        Side of a tile, and width of its border that is read but not kept.
    min_coverage
        Smallest fraction of a tile's core inside the regions, in [0, 1]; at 0 every tile that a region touches.
    save_png
        Whether the tiles as read, margins included, are written as ``tiles/<row>_<col>.png``.
    """

    tile_mpp: float = 0.5
    tile_px: int = 512
    margin_px: int = 32
    min_coverage: float = 0.0
    save_png: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InferOptions(SlideOptions):
    """Which model runs, and how.

    Parameters
    ----------
    model
        Name or folder of a model; by default the one that `wsiscore.models.store.default_model` names.
    tile_px
        Side of a tile; by default the model's.
    device
        ``auto``, ``cuda``, ``mps`` or ``cpu``.
    batch_size
        Tiles a batch; by default by the size of the tiles.
    maps
        Which of the model's maps are computed and kept: ``needed`` ones, or ``all``.
    norm
        What the model's normalisation takes its statistics from: each tile or a sample of the slide; by default as its
        card says.
    engine, precision
        What computes the network, and in which precision, as for `wsiscore.models.store.load_model`.
    ome_tiff
        Whether a virtual stain is also written as ``<stem>-virtual.ome.tif``.
    """

    model: str | None = None
    tile_px: int | None = None
    device: str = "auto"
    batch_size: int | None = None
    maps: Maps = "needed"
    norm: Literal["tile", "slide"] | None = None
    engine: Engine | Literal["auto"] = "auto"
    precision: Precision | None = None
    ome_tiff: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreOptions(InferOptions):
    """How cells are found and counted.

    Parameters
    ----------
    cutoff
        Percent at and above which an index is high.
    rules
        Rules for finding cells by name, as in `wsiscore.cells.rules`; those left out are the model's.
    count
        Whether ``all`` nuclei count or those of the ``tumour`` alone, where the model tells them apart; by default all
        in regions that somebody drew, and those of the tumour in found tissue.
    keep
        What of the mosaic stays: ``all``, or with ``cells`` no maps, so that it cannot be scored again.
    csv
        Whether the cells are written as CSV instead of Parquet.
    cells
        GeoJSON of the cells as somebody corrected them, of a mosaic.
    author
        Who issues the report.
    force
        Whether a report that somebody issued is replaced, and cells of which most are new are taken.
    also
        Names or folders of further models, which the index is compared with.
    """

    cutoff: float = CUTOFF
    rules: Mapping[str, float] = field(default_factory=dict)
    csv: bool = False
    count: Literal["tumour", "all"] | None = None
    keep: Literal["all", "cells"] = "all"
    also: tuple[str, ...] = ()
    cells: Path | None = None
    author: str = ""
    force: bool = False


_OF_ONE_SLIDE = ("out", "slide", "name", "distinct", "facts")


def chosen_json(options: SlideOptions) -> dict[str, Any]:
    """Return the options in effect as what JSON can hold, without those that say where one slide is or goes.

    None stands for what the model, or the slide, decides.
    """
    values = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in _OF_ONE_SLIDE}
    values = {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
