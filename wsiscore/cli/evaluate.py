"""``wsiscore evaluate``: how good results are, against what people annotated or reported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    help="Folder for the tables as CSV, and figures; by default none are written.",
)

_truth = click.option(
    "--truth", metavar="PATH", type=click.Path(path_type=Path), required=True, help="What is true: a file or a folder."
)
_types_given = click.option(
    "--types",
    metavar="N=CLASS,...",
    default="",
    callback=lambda _ctx, _param, text: _types(text),
    help="What the numbers of a type_map mean, as 1=positive,2=negative; others are excluded. Without it the classes "
    "of such a map are unknown.",
)
_predicted = click.argument("predicted", metavar="PRED", type=click.Path(path_type=Path))
_MEASURES = ("mse", "psnr", "ssim", "css", "phv", "dists", "fid", "kid")  # compare.MEASURES, without loading it


@click.group()
def evaluate() -> None:
    """Measure results against annotated cells, masks, pictures or clinical values."""


@evaluate.command(epilog="Example: wsiscore evaluate cells wsiscore-out --truth slides --mpp 0.25 -o evaluation/cells")
@click.argument("predicted", metavar="PREDICTED...", nargs=-1, required=True)
@_truth
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
@_types_given
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


@evaluate.command(epilog="Example: wsiscore evaluate images virtual --truth ihc -o evaluation/images")
@_predicted
@_truth
@click.option(
    "--features",
    metavar="NET.pt",
    type=click.Path(path_type=Path),
    help="Feature network as a TorchScript file, for phv, dists, fid and kid. It is a program: it runs.",
)
@click.option(
    "--measure",
    "measures",
    type=click.Choice(_MEASURES),
    multiple=True,
    help="Measure to take; repeat. By default all that can be had.",
)
@options.device
@_out
def images(predicted: Path, truth: Path, **chosen: Any) -> None:
    """Measure predicted pictures against true ones; print one tab-separated line a picture, and the total.

    PRED and the truth are folders of PNG, TIFF or JPEG, matched by their stems, or what `wsiscore infer` wrote with a
    model that paints. Measures are MSE, PSNR, SSIM, CSS; with a feature network also PHV, DISTS, FID and KID.
    """
    from wsiscore.evaluation.images.evaluate import evaluate_images

    _print(evaluate_images(predicted, truth, **chosen))


@evaluate.command(epilog="Example: wsiscore evaluate masks found-masks --truth masks -o evaluation/masks")
@_predicted
@_truth
@_types_given
@_out
def masks(predicted: Path, truth: Path, types: dict[int, Kind], out: Path | None) -> None:
    """Measure predicted masks of nuclei against true ones; print one tab-separated line a picture, and the total.

    PRED and the truth are folders, matched by stems, of masks of coloured classes (red positive, blue negative, green
    between) or maps of numbered instances (NPY, TIFF, PNG), or what `wsiscore infer` wrote with a model that paints
    such masks. Measures are pixel accuracy, Dice, IoU, AJI and the error of the index.
    """
    from wsiscore.evaluation.images.evaluate import evaluate_masks

    _print(evaluate_masks(predicted, truth, types=types, out=out))


@evaluate.command(epilog="Example: wsiscore evaluate stain virtual --truth ihc --mpp 0.5 -o evaluation/stain")
@_predicted
@_truth
@options.mpp
@click.option(
    "--cuts",
    "cuts_od",
    metavar="WEAK,MODERATE,STRONG",
    default="0.2,0.4,0.6",
    show_default=True,
    callback=lambda _ctx, _param, text: _cuts(text),
    help="Optical densities of DAB from which a pixel is 1+, 2+ and 3+.",
)
@options.device
@_out
def stain(predicted: Path, truth: Path, **chosen: Any) -> None:
    """Measure virtual stains against real ones; print one tab-separated line a picture, and the total.

    PRED and the truth as for `images`. Compared are the number of nuclei, where there is DAB at increasing
    thresholds, and the class of its intensity, like HER2's 0, 1+, 2+, 3+ but no HER2 score.
    """
    from wsiscore.evaluation.images.evaluate import evaluate_stain

    _print(evaluate_stain(predicted, truth, **chosen))


def _cuts(text: str) -> tuple[float, ...]:
    """Return three increasing optical densities."""
    try:
        cuts = tuple(float(part) for part in text.split(","))
    except ValueError:
        cuts = ()
    if len(cuts) != 3 or not 0 < cuts[0] < cuts[1] < cuts[2] < math.inf:
        raise click.BadParameter(f"found {text!r}; wanted three increasing optical densities, as 0.2,0.4,0.6")
    return cuts


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
