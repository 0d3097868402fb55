"""``wsiscore evaluate``: how good results are, against what people annotated or reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsiscore.cli import options

if TYPE_CHECKING:
    from wsiscore.evaluation import Kind

__all__ = ["evaluate"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_out = click.option(
    "-o",
    "out",
    metavar="OUT",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the tables as CSV and a figure; by default none are written.",
)


@click.group()
def evaluate() -> None:
    """Measure results against annotated cells or clinical values."""


@evaluate.command(epilog="Example: wsiscore evaluate cells wsiscore-out --truth slides --mpp 0.25 -o evaluation/cells")
@click.argument("predicted", metavar="PREDICTED...", nargs=-1, required=True)
@click.option(
    "--truth", metavar="PATH", type=click.Path(path_type=Path), required=True, help="File or folder of annotations."
)
@click.option(
    "--mpp", metavar="M", type=click.FloatRange(0, min_open=True), help="Resolution of what is annotated, µm/px."
)
@click.option(
    "--radius",
    type=click.FloatRange(0, min_open=True),
    default=6.0,
    show_default=True,
    help="Greatest distance of a predicted and an annotated cell that are one, µm.",
)
@click.option(
    "--types",
    metavar="N=CLASS,...",
    default="",
    callback=lambda _ctx, _param, text: _types(text),
    help="What the numbers of a type_map mean, as 1=positive,2=negative; others are excluded. Without it such a map "
    "measures detection only.",
)
@_out
def cells(
    predicted: tuple[str, ...],
    truth: Path,
    mpp: float | None,
    radius: float,
    types: dict[int, Kind],
    out: Path | None,
) -> None:
    """Measure predicted cells against annotated ones; print one tab-separated line an image, and the total.

    PREDICTED is what `wsiscore score` wrote: cells.parquet or cells.csv, the folder of a slide, or a folder of such
    folders. The truth of an image is found by its stem: BCData HDF5, lists of x, y, label_id, GeoJSON, tables with
    x_um, y_um, class, maps of numbered instances (NPY, TIFF, PNG), masks of coloured classes, or one file with the
    outlines of many images.
    """
    from wsiscore.evaluation import evaluate_cells

    _print(evaluate_cells(options.paths_of(predicted), truth, mpp=mpp, radius_um=radius, types=types, out=out))


@evaluate.command(epilog="Example: wsiscore evaluate cases wsiscore-out/scores.csv clinical.csv -o evaluation/cases")
@click.argument("scores", metavar="SCORES.csv", type=_FILE)
@click.argument("clinical", metavar="CLINICAL.csv", type=_FILE)
@click.option(
    "--cutoff",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    default=20.0,
    show_default=True,
    help="Index at and above which a case is high, %.",
)
@_out
def cases(scores: Path, clinical: Path, cutoff: float, out: Path | None) -> None:
    """Measure a cohort's scores against clinical values; print the measures, then the cutoff relaxed by 0 to 10 points.

    CLINICAL has the columns ki67, in percent, and slide or case; with both, the slides of a case are pooled by their
    counts. Cases without a score are in no measure and are counted as unscored.
    """
    from wsiscore.evaluation import evaluate_cases

    summary, relaxation = evaluate_cases(scores, clinical, cutoff=cutoff, out=out)
    _print([*summary, (), *relaxation])


def _types(text: str) -> dict[int, Kind]:
    """Return what ``1=positive,2=negative`` says."""
    from wsiscore.evaluation import Kind

    types: dict[int, Kind] = {}
    for pair in filter(None, text.split(",")):
        number, _, name = pair.partition("=")
        if not number.strip().isdecimal() or name.strip().casefold() not in {"positive", "negative"}:
            raise click.BadParameter(f"found {pair!r}; wanted numbers and classes, as 1=positive,2=negative")
        types[int(number)] = Kind[name.strip().upper()]
    return types


def _print(rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        click.echo("\t".join(row))
