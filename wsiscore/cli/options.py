"""Options of two or more commands, named as the fields of `wsiscore.pipeline.options`."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from wsiscore.cells.rules import rule_fields, rule_flag
from wsiscore.cli.checks import check_device, check_engine, check_out, check_roi
from wsiscore.engines.choice import ENGINES, PRECISIONS
from wsiscore.errors import ModelError, SlideError, WsiscoreError
from wsiscore.files import one_line

if TYPE_CHECKING:
    from wsiscore.evaluation.detection.truth import Kind

__all__ = [
    "TILE_SIZES",
    "FiniteRange",
    "checked",
    "device",
    "each",
    "inputs",
    "model_of",
    "mpp",
    "named_apart",
    "of_model",
    "of_rules",
    "of_slides",
    "of_slides_or_manifest",
    "paths_of",
    "shard",
    "slides",
    "threads",
    "types_of",
]

if TYPE_CHECKING:
    from wsiscore.pipeline.options import SlideOptions

Command = Callable[..., Any]
Chosen = TypeVar("Chosen", bound="SlideOptions")


class FiniteRange(click.FloatRange):
    """A number in a range: neither infinite nor nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number; click's usage error if it is none, not finite or outside the range."""
        if not math.isfinite(click.FLOAT.convert(value, param, ctx)):
            self.fail(f"{value} is not a finite number", param, ctx)
        return super().convert(value, param, ctx)


def shard(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Return I and N of ``I/N``; click's usage error if they are no numbers with I from 1 to N."""
    if value is None:
        return None
    i, _, n = value.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        wanted = "I/N with I from 1 to N, such as 1/8; number the jobs of an array from 1"
        raise click.BadParameter(f"found {value!r}, wanted {wanted}", ctx, param)
    return int(i), int(n)


TILE_SIZES = click.Choice([256, 512, 1024])
_NULL = "wsiscore.null"
_READ_BYTES = 65536


def _together(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _with_folders(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Return what was given, with the slides of a folder in its place."""
    from wsiscore.slide.folder import is_folder_of_slides, slides_in

    found: list[str] = []
    for name in given:
        try:
            found += map(str, slides_in(Path(name))) if is_folder_of_slides(Path(name)) else [name]
        except SlideError as error:
            raise click.UsageError(one_line(str(error))) from error
    return tuple(found)


def slides(metavar: str, **settings: Any) -> Callable[[Command], Command]:
    """Return the argument for slides, where a folder stands for those in it, and -0."""
    return _together(
        click.argument("inputs", metavar=metavar, nargs=-1, callback=_with_folders, **settings),
        click.option(
            "-0",
            "--null",
            is_flag=True,
            expose_value=False,
            callback=lambda ctx, _, given: ctx.meta.update({_NULL: given}),
            help="Paths on standard input end in NUL instead of a new line, as `find -print0` writes them.",
        ),
    )


inputs = slides("INPUT...", required=True)
"""Slides, folders of slides, tile lists and mosaics."""
mpp = click.option(
    "--mpp",
    metavar="M",
    type=FiniteRange(0, min_open=True),
    help="Resolution of the slides, µm/px, where a file does not say.",
)
device = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "mps", "cpu"]),
    default="auto",
    show_default=True,
    help="Where to compute; auto is the fastest device there is.",
)


threads = click.option(
    "--threads",
    type=click.IntRange(min=1),
    help="Threads a process; by default one a processor that it may use.",
)


_where = (
    click.option(
        "-o",
        "--out",
        metavar="OUT",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the results: wsiscore-out by default, or where a given tile list or mosaic lies.",
    ),
    click.option(
        "--roi",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Annotations of a single slide: GeoJSON (QuPath), ImageScope, ASAP or HALO. By default a file beside "
        "the slide with its stem; without one, found tissue.",
    ),
    click.option(
        "--roi-class",
        "roi_classes",
        metavar="NAME",
        multiple=True,
        help="Class or name of annotations to keep; repeat.",
    ),
    click.option(
        "--exclude-class",
        "exclude_classes",
        metavar="NAME",
        multiple=True,
        help="Class or name of annotations to cut out of the others, besides Ignore*, Necrosis, Artifact, Fold, Blur, "
        "Background, Stroma and the like; repeat.",
    ),
    click.option(
        "--slide",
        metavar="FILE",
        type=click.Path(exists=True, path_type=Path),
        help="Where the slide of a single tile list or mosaic is now, if it was moved.",
    ),
    mpp,
    threads,
)

of_slides = _together(inputs, *_where)
"""What is read, and where the results go."""

of_slides_or_manifest = _together(
    slides("[INPUT...]"),
    click.option(
        "--manifest",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Table of slides, CSV, instead of INPUT: a column path, and any of case, name, mpp, roi, roi_class, "
        "specimen, clone, platform.",
    ),
    *_where,
)
"""The same, where a table of slides may be given instead."""

of_model = _together(
    click.option(
        "--model",
        metavar="NAME|FOLDER",
        help="Model; `wsiscore models list` shows which, and the default. `score` compares several: a,b reports a.",
    ),
    click.option(
        "--size", "tile_px", type=TILE_SIZES, help="Side of a tile, px at the model's scale; by default the model's."
    ),
    device,
    click.option(
        "--batch",
        "batch_size",
        type=click.IntRange(min=1),
        help="Tiles a batch; by default as many as make 16 of 256 px.",
    ),
    click.option(
        "--maps",
        type=click.Choice(["needed", "all"]),
        default="needed",
        show_default=True,
        help="Maps of the model to compute and keep: those needed for cells or a picture, or all.",
    ),
    click.option(
        "--norm",
        type=click.Choice(["tile", "slide"]),
        help="What the model's normalisation takes its statistics from: each tile, or a sample of the slide; "
        "by default as its card says.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", *ENGINES]),
        default="auto",
        show_default=True,
        help="What computes the network on the CPU; auto is OpenVINO where it is installed (same cells), else torch.",
    ),
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        help="Of the network: by default fp32 on the CPU, mixed half precision on a GPU; bf16 and int8 are faster and "
        "change the index a little.",
    ),
)
"""Which model runs, and how."""


def _rule_option(name: str, about: Mapping[str, Any]) -> Callable[[Command], Command]:
    unit = f", {about['unit']}" if about["unit"] else ""
    return click.option(
        rule_flag(name),
        name,
        type=FiniteRange(about["least"], about["most"], min_open=about["above"]),
        help=f"{about['text']}{unit}; by default the model's.",
    )


of_rules = _together(*(_rule_option(name, about) for name, about in rule_fields().items()))
"""How cells are found: one option for each rule of every kind of output."""


def model_of(name: str | None) -> str | None:
    """Return a model that was asked for: its name, or its folder's whole path, which any worker can find.

    Raises
    ------
    click.BadParameter
        If there is no such model, or its card is broken.
    """
    if name is None:
        return None
    from wsiscore.models.card import read_card
    from wsiscore.models.store import find_model, model_names

    try:
        folder = find_model(name)
        read_card(folder)
    except ModelError as error:
        raise click.BadParameter(one_line(str(error)), param_hint="--model") from error
    return name if name in model_names() else str(folder.absolute())


def checked(chosen: dict[str, Any], *, here: bool = True) -> dict[str, Any]:
    """Return the options of a command after a check of what is wrong for every slide, before the first is read.

    Parameters
    ----------
    chosen
        By parameter; the model becomes what `model_of` returns.
    here
        Whether this computer runs the model, so that its devices count.

    Raises
    ------
    click.BadParameter
        If the folder of the results, the annotation file, the model, device or engine cannot be used.
    """
    check_out(chosen["out"])
    if chosen["roi"] is not None:
        check_roi(chosen["roi"], chosen["roi_classes"], chosen["exclude_classes"])
    if "model" not in chosen:
        return chosen
    if here and chosen["device"] not in ("auto", "cpu"):
        check_device(chosen["device"])
    if here and chosen["engine"] not in ("auto", "torch"):
        check_engine(chosen["engine"], chosen["precision"] or "fp32")
    return {**chosen, "model": model_of(chosen["model"])}


def types_of(text: str) -> dict[int, Kind]:
    """Parse ``1=positive,2=negative``."""
    from wsiscore.evaluation.detection.truth import Kind

    types: dict[int, Kind] = {}
    for pair in filter(None, text.split(",")):
        number, _, name = pair.partition("=")
        if not number.strip().isdecimal() or name.strip().casefold() not in {"positive", "negative", "unknown"}:
            raise click.BadParameter(
                f"found {pair!r}; wanted numbers and classes (positive, negative, unknown), as 1=positive,2=negative"
            )
        types[int(number)] = Kind[name.strip().upper()]
    return types


def paths_of(inputs: Sequence[str], roi: Path | None = None, slide: Path | None = None) -> Iterator[Path]:
    """Yield the paths given, and for "-" those that standard input brings, line by line as they come.

    Raises
    ------
    click.UsageError
        If one ROI file, or one place of a slide, is given for what may be several slides.
    """
    if roi is not None and (len(inputs) > 1 or "-" in inputs):
        raise click.UsageError("--roi is of a single slide; for several put each one's file beside it, with its stem")
    if slide is not None and (len(inputs) > 1 or "-" in inputs):
        raise click.UsageError("--slide is of a single tile list or mosaic")
    context = click.get_current_context(silent=True)
    return _paths(inputs, b"\0" if context and context.meta.get(_NULL) else b"\n")


def _paths(inputs: Sequence[str], end: bytes) -> Iterator[Path]:
    for given in inputs:
        if given == "-":
            yield from (Path(os.fsdecode(path)) for path in _parts(cast(BufferedReader, sys.stdin.buffer), end) if path)
        else:
            yield Path(given)


def _parts(stream: BufferedReader, end: bytes) -> Iterator[bytes]:
    """Yield the parts of a stream, each as soon as its end has come; those that end in a new line without it."""
    if end == b"\n":
        yield from (line.rstrip(b"\r\n") for line in stream)
        return
    rest = b""
    while read := stream.read1(_READ_BYTES):
        *whole, rest = (rest + read).split(end)
        yield from whole
    yield rest


def named_apart(inputs: Sequence[str], given: Chosen) -> Callable[[Path], Chosen]:
    """Return the options for each path: slides of one stem get folders of different names, but not those of a pipe."""
    from wsiscore.pipeline.job import same_names

    shared = set() if "-" in inputs else same_names(map(Path, inputs), given)
    return lambda path: replace(given, distinct=path in shared)


def each(paths: Iterator[Path], work: Callable[[Path], Path | None]) -> None:
    """Print the path that `work` gives for each path; one that fails is a line on standard error, and exit status 1."""
    failed = False
    for path in paths:
        try:
            result = work(path)
        except WsiscoreError as error:
            reason = " ".join(str(error).split())
        except Exception as error:
            logging.getLogger("wsiscore").exception("%s: unexpected error", one_line(str(path)))
            reason = f"{one_line(str(path))}: {type(error).__name__}: {error}"
        else:
            if result is not None:
                click.echo(os.fsencode(result))
            sys.stdout.flush()
            continue
        failed = True
        click.echo(f"Error: {one_line(reason)}", err=True)
    if failed:
        raise SystemExit(1)
