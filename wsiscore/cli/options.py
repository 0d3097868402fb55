"""Options that two or more commands share, and what they become."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from wsiscore.errors import WsiscoreError

__all__ = ["batch", "device", "each", "inputs", "model", "mpp", "out", "paths_of", "roi", "roi_class", "size"]

_POSITIVE = click.FloatRange(0, min_open=True)

inputs = click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
out = click.option(
    "-o",
    "out",
    metavar="OUT",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results: wsiscore-out by default, or where a given tile list or mosaic lies.",
)
roi = click.option(
    "--roi",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Annotations of a single slide: GeoJSON (QuPath), ImageScope, ASAP or HALO. By default a file beside the "
    "slide with its stem; without one, found tissue.",
)
roi_class = click.option(
    "--roi-class", metavar="NAME", multiple=True, help="Class or name of annotations to keep; repeat."
)
mpp = click.option(
    "--mpp", metavar="M", type=_POSITIVE, help="Resolution of the slides, µm/px, where a file does not say."
)
model = click.option(
    "--model", metavar="NAME|FOLDER", help="Model; `wsiscore models list` shows which, and the default."
)
size = click.option(
    "--size",
    type=click.Choice(["256", "512", "1024"]),
    help="Side of a tile, px at the model's scale; by default the model's.",
)
device = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "mps", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to compute.",
)
batch = click.option(
    "--batch", type=click.IntRange(min=1), help="Tiles a batch; by default as many as make 16 of 256 px."
)


def paths_of(inputs: Sequence[str], roi: Path | None = None) -> Iterator[Path]:
    """Yield the paths given, and for "-" those that standard input brings, line by line as they come.

    Raises
    ------
    click.UsageError
        If one ROI file is given for what may be several slides.
    """
    if roi is not None and (len(inputs) > 1 or "-" in inputs):
        raise click.UsageError("--roi is of a single slide; for several put each one's file beside it, with its stem")
    return _paths(inputs)


def _paths(inputs: Sequence[str]) -> Iterator[Path]:
    for given in inputs:
        if given == "-":
            yield from (Path(line) for read in sys.stdin if (line := read.rstrip("\r\n")))
        else:
            yield Path(given)


def each(paths: Iterator[Path], work: Callable[[Path], Any]) -> None:
    """Print what `work` gives for each path; one that fails is told on standard error and turns the exit status 1."""
    failed = False
    for path in paths:
        try:
            click.echo(work(path))
        except WsiscoreError as error:
            failed = True
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
        sys.stdout.flush()
    if failed:
        raise SystemExit(1)
