"""``wsiscore evaluate``: compare results with annotations or clinical values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiscore.cli import options
from wsiscore.cli.command import Group
from wsiscore.cli.table import json_lines, print_table

if TYPE_CHECKING:
    from wsiscore.evaluation import Kind

__all__ = ["evaluate"]

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_out = click.option(
    "-o",
    "--out",
    metavar="OUT",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for tables (CSV) and figures; by default nothing is written.",
)

_truth = click.option(
    "--truth", metavar="PATH", type=click.Path(path_type=Path), required=True, help="Annotations: a file or a folder."
)
_types_given = click.option(
    "--types",
    metavar="N=CLASS,...",
    default="",
    callback=lambda _ctx, _param, text: options.types_of(text),
    help="Classes of the numbers of a type_map, as 1=positive,2=negative; others are excluded. By default the classes "
    "of such a map are unknown.",
)
_predicted = click.argument("predicted", metavar="PRED", type=click.Path(path_type=Path))
_MEASURES = (
    "mse",
    "psnr",
    "ssim",
    "css",
    "phv",
    "dists",
    "fid",
    "kid",
)  # images.evaluate.MEASURES, which is slow to import


@click.group(cls=Group)
def evaluate() -> None:
    """Compare results with annotated cells, masks, pictures or clinical values."""


@evaluate.command(epilog="Example: wsiscore evaluate cells wsiscore-out --truth slides --mpp 0.25 -o evaluation/cells")
@click.argument("predicted", metavar="PREDICTED...", nargs=-1, required=True)
@_truth
@click.option(
    "--mpp", metavar="M", type=click.FloatRange(0, min_open=True), help="Resolution of annotations in pixels, µm/px."
)
@click.option(
    "--radius",
    type=click.FloatRange(0, min_open=True),
    default=6.0,
    show_default=True,
    help="Greatest distance of a predicted and an annotated cell that match, µm.",
)
@_types_given
@click.option(
    "--regions",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Annotation file, or folder of them by stem: cells outside the outlines are left out. Needs --mpp.",
)
@_out
@json_lines
def cells(
    predicted: tuple[str, ...],
    truth: Path,
    mpp: float | None,
    radius: float,
    types: dict[int, Kind],
    regions: Path | None,
    out: Path | None,
    json_lines: bool,
) -> None:
    """Compare predicted with annotated cells; print a tab-separated line for each image, and the total.

    PREDICTED is what `wsiscore score` wrote: cells.parquet or cells.csv, the folder of a slide, or a folder of such
    folders. The truth of an image is found by its stem: BCData HDF5, lists of x, y, label_id, GeoJSON, tables with
    x_um, y_um, class or x, y, class, maps of numbered instances (NPY, TIFF, PNG), class masks in colour, or one file
    with the outlines of many images.
    """
    from wsiscore.evaluation import evaluate_cells

    found = options.paths_of(predicted)
    print_table(
        evaluate_cells(found, truth, mpp=mpp, radius_um=radius, types=types, regions=regions, out=out),
        as_json=json_lines,
    )


@evaluate.command(epilog="Example: wsiscore evaluate cases wsiscore-out/scores.csv clinical.csv -o evaluation/cases")
@click.argument("scores", metavar="SCORES.csv", type=_FILE)
@click.argument("clinical", metavar="CLINICAL.csv", type=_FILE)
@click.option(
    "--cutoff",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    default=20.0,
    show_default=True,
    help="An index of at least so many percent is high.",
)
@_out
@json_lines
def cases(scores: Path, clinical: Path, cutoff: float, out: Path | None, json_lines: bool) -> None:
    """Compare a cohort's scores with clinical values; print the measures and the relaxation table (±0 to 10 points).

    CLINICAL has the columns ki67, in percent, and slide or case; with both, the counts of the slides of a
    case add up. Cases without a score are counted as unscored and are in no other measure.
    """
    from wsiscore.evaluation import evaluate_cases

    summary, relaxation = evaluate_cases(scores, clinical, cutoff=cutoff, out=out)
    print_table([*summary, (), *relaxation], as_json=json_lines)


@evaluate.command(epilog="Example: wsiscore evaluate images virtual --truth ihc -o evaluation/images")
@_predicted
@_truth
@click.option(
    "--features",
    metavar="NET.pt",
    type=click.Path(path_type=Path),
    help="Feature network as TorchScript, for phv, dists, fid and kid. It is executed: use trusted files only.",
)
@click.option(
    "--measure",
    "measures",
    type=click.Choice(_MEASURES),
    multiple=True,
    help="Measure to compute; may be repeated. By default all that are possible.",
)
@options.device
@_out
@json_lines
def images(predicted: Path, truth: Path, json_lines: bool, **chosen: Any) -> None:
    """Compare predicted with true pictures; print a tab-separated line for each picture, and the total.

    PRED and the truth are folders of PNG, TIFF or JPEG, matched by their stems, or the output of `wsiscore infer`
    with a model of virtual stains. Measures are MSE, PSNR, SSIM, CSS; with a feature network also PHV, DISTS, FID and
    KID.
    """
    from wsiscore.evaluation.images.evaluate import evaluate_images

    print_table(evaluate_images(predicted, truth, **chosen), as_json=json_lines)


@evaluate.command(epilog="Example: wsiscore evaluate masks found-masks --truth masks -o evaluation/masks")
@_predicted
@_truth
@_types_given
@_out
@json_lines
def masks(predicted: Path, truth: Path, types: dict[int, Kind], out: Path | None, json_lines: bool) -> None:
    """Compare predicted with true masks of nuclei; print a tab-separated line for each picture, and the total.

    PRED and the truth are folders, matched by stems, of class masks in colour (red positive, blue negative, green
    between) or maps of numbered instances (NPY, TIFF, PNG), or the output of `wsiscore infer` with a model of class
    maps. Measures are pixel accuracy, Dice, IoU, AJI and the error of the index.
    """
    from wsiscore.evaluation.images.evaluate import evaluate_masks

    print_table(evaluate_masks(predicted, truth, types=types, out=out), as_json=json_lines)


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
    help="Least optical densities of DAB of 1+, 2+ and 3+.",
)
@options.device
@_out
@json_lines
def stain(predicted: Path, truth: Path, json_lines: bool, **chosen: Any) -> None:
    """Compare virtual with real stains; print a tab-separated line for each picture, and the total.

    PRED and the truth as for `images`. Measures are the number of nuclei, the area of DAB at increasing thresholds,
    and an intensity class of 0, 1+, 2+ or 3+, which is not a HER2 score.
    """
    from wsiscore.evaluation.images.evaluate import evaluate_stain

    print_table(evaluate_stain(predicted, truth, **chosen), as_json=json_lines)


def _cuts(text: str) -> tuple[float, ...]:
    """Parse three increasing optical densities."""
    try:
        cuts = tuple(float(part) for part in text.split(","))
    except ValueError:
        cuts = ()
    if len(cuts) != 3 or not 0 < cuts[0] < cuts[1] < cuts[2] < math.inf:
        raise click.BadParameter(f"found {text!r}; wanted three increasing optical densities, as 0.2,0.4,0.6")
    return cuts
