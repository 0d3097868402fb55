"""Evaluation of predicted cells against annotated ones: from files to tables and a figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from wsiscore.evaluation.detection.files import find_predicted, read_found, read_true_cells, slide_of
from wsiscore.evaluation.detection.measures import (
    CELL_HEADER,
    CellMeasures,
    cell_rows,
    compare_cells,
    summarise_cells,
)
from wsiscore.evaluation.detection.rois import find_regions, inside_regions
from wsiscore.evaluation.detection.truth import Kind
from wsiscore.evaluation.figures import cell_figure
from wsiscore.evaluation.tables import Table, csv_text, summary_rows, warn_about, write_text

__all__ = ["RADIUS_UM", "evaluate_cells"]

RADIUS_UM = 6.0
"""Greatest distance between a predicted and a true cell that match, in micrometres: about the radius of a nucleus."""


def evaluate_cells(
    predicted: Iterable[Path],
    truth: Path,
    *,
    mpp: float | None = None,
    radius_um: float = RADIUS_UM,
    types: Mapping[int, Kind] | None = None,
    regions: Path | None = None,
    out: Path | None = None,
) -> Table:
    """Compare predicted cells with annotated ones.

    An image without truth or regions, truth without an image, a slide that failed, and an image without an index are
    left out of the measures that they have no value for. A warning names them.

    Parameters
    ----------
    predicted
        Tables of cells, folders of a slide, or folders of such folders, as `wsiscore score` writes them.
    truth
        File or folder of annotations; see `files.read_true_cells`.
    mpp
        Micrometres per pixel of the annotations.
    radius_um
        Greatest distance between a predicted and a true cell that match.
    types
        Classes of the numbers of a type map; see `masks.from_npy`.
    regions
        Annotation file or folder of them; see `rois.find_regions`. Cells outside the outlines are left out.
    out
        Folder for ``cells.csv``, ``summary.csv`` and ``index.svg``; None writes nothing.

    Returns
    -------
    list
        The header, a row for each image, and the total.

    Raises
    ------
    TruthError
        If predictions, truth or regions cannot be read, or have no image in common.
    RoiError
        If the regions of an image cannot be read.
    OutputError
        If a file cannot be written.
    """
    tables, failed = find_predicted(predicted)
    outlines = find_regions(regions, list(tables)) if regions else {}
    slides = [slide for table in tables.values() if (slide := slide_of(table))]
    known, unused = read_true_cells(
        truth, list(tables), mpp=mpp, types=types or {}, slides=slides, regions=list(outlines.values())
    )
    warn_about("no table of cells, did they fail?", [folder.name for folder in failed])
    warn_about("left out, no truth", sorted(set(tables) - set(known)))
    warn_about("truth without predicted cells", unused)
    images = []
    for name in known:
        if regions and name not in outlines:
            continue
        found, true = read_found(tables[name]), known[name]
        if name in outlines:
            found = found.select(inside_regions(outlines[name], found.xy_um, mpp))
            true = true.select(inside_regions(outlines[name], true.xy_um, mpp))
        images.append(compare_cells(name, found, true, radius_um))
    warn_about("left out, no regions", [name for name in known if regions and name not in outlines])
    _warn_about_measures(images)
    rows: Table = [CELL_HEADER, *cell_rows(images)]
    if out is not None:
        write_text(out / "cells.csv", csv_text(rows))
        write_text(out / "summary.csv", csv_text(summary_rows(summarise_cells(images))))
        write_text(out / "index.svg", cell_figure(images))
    return rows


def _warn_about_measures(images: list[CellMeasures]) -> None:
    """Name the images that have no classes or no index."""
    warn_about("detection only, the truth has no classes", [i.slide for i in images if i.true is None])
    warn_about("no index, no true cell", [i.slide for i in images if i.true is not None and not i.true.n])
    warn_about("no index, no predicted cell", [i.slide for i in images if i.true and i.true.n and not i.found.n])
