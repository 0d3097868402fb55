"""``wsiscore calibrate``: choose the rules of a model on a laboratory's own annotations."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command
from wsiscore.cli.table import json_lines, print_table

if TYPE_CHECKING:
    from wsiscore.evaluation import Kind

__all__ = ["calibrate"]


@click.command(cls=Command, epilog="Example: wsiscore calibrate wsiscore-out --truth slides --mpp 0.25 -o our-lab")
@click.argument("predicted", metavar="PREDICTED...", nargs=-1, required=True)
@click.option(
    "--truth", metavar="PATH", type=click.Path(path_type=Path), required=True, help="Annotations: a file or a folder."
)
@click.option("--model", metavar="NAME|FOLDER", help="Model that made PREDICTED; by default the default model.")
@click.option(
    "-o",
    "--out",
    metavar="FOLDER",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the new model: the same weights with the chosen rules.",
)
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
@click.option(
    "--types",
    metavar="N=CLASS,...",
    default="",
    callback=lambda _ctx, _param, text: options.types_of(text),
    help="Classes of the numbers of a type_map, as 1=positive,2=negative.",
)
@click.option(
    "--regions",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="Annotation file, or folder of them by stem: cells outside the outlines are left out. Needs --mpp.",
)
@json_lines
def calibrate(
    predicted: tuple[str, ...],
    truth: Path,
    model: str | None,
    out: Path,
    mpp: float | None,
    radius: float,
    types: dict[int, Kind],
    regions: Path | None,
    json_lines: bool,
) -> None:
    """Choose the threshold and the positivity limit of a model on annotated slides, and write the model with them.

    PREDICTED is what `wsiscore score` wrote with the model: the folder of a slide, or a folder of such folders. The
    maps are read again; no network runs. The table has a line for each picture: with the rules of the model, with the
    rules chosen on all other pictures, and with those that are written: the ones chosen on all pictures, or the
    model's own if, on pictures left out, the choice is no better than these.
    """
    from wsiscore.evaluation.detection.calibrate import annotated_pictures
    from wsiscore.evaluation.detection.calibrate import calibrate as choose
    from wsiscore.models.store import default_model

    found = annotated_pictures(options.paths_of(predicted), truth, mpp=mpp, types=types, regions=regions)
    command = shlex.join(["wsiscore", *sys.argv[1:]])
    name = truth.absolute().stem
    result = choose(found, model or default_model(), out, radius_um=radius, command=command, name=name)
    print_table(result.table, as_json=json_lines)
    if result.tested is None:
        click.echo("wsiscore: one picture alone: the error on others is not known; annotate more", err=True)
    elif result.kept:
        click.echo("wsiscore: no choice is better on the pictures left out of it; the model keeps its rules", err=True)
    limit = "the stronger map" if result.rules.positive_od is None else f"{result.rules.positive_od:g} OD"
    click.echo(f"wsiscore: {out}: threshold {result.rules.threshold:g}, positive by {limit}", err=True)
