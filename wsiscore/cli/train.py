"""``wsiscore train``: train a generator on rendered fields, unlabelled slides or aligned pictures."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command
from wsiscore.models.registry import families, family

__all__ = ["train"]

_TILE_PX = 256  # of tiles cut from slides, as in `wsiscore.training.inputs`
_COVERAGE = 0.5  # of the core of such a tile inside the regions
_SMALL = {"width": 8, "downsamplings": 5}  # ends of the names of options that make a network small, for examples


_SECTIONS = {
    "Training": (
        *("out", "settings", "steps", "batch", "seed", "start", "every", "crop_px", "workers", "threads", "device"),
    ),
    "Data and split": (
        *("fields", "fields_seed", "appearances", "cache", "mpp", "unique", "cases", "order", "test_fraction"),
        *("folds", "fold", "split_seed"),
    ),
    "Annotated pictures": (
        *("truth", "unmarked", "recolour", "regions", "types", "rendered_fraction"),
        *("masks", "mask_mpp", "mask_size_px"),
    ),
}


_OPTIONS = (
    click.argument("inputs", metavar="[INPUT]...", nargs=-1),
    click.option(
        "-o",
        "--out",
        metavar="OUT",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder to fill.",
    ),
    click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="An option of the family; repeat."),
    click.option("--steps", type=click.IntRange(1), default=10_000, show_default=True, help="Gradient steps."),
    click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Items per step and process."),
    click.option(
        "--seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of the initial weights and of sampling; same seed, same training.",
    ),
    click.option("--start", metavar="NAME|FOLDER", help="Model of the family to start from."),
    click.option("--fields", type=click.IntRange(1), default=2000, show_default=True, help="Rendered fields."),
    click.option("--fields-seed", type=click.IntRange(0), help="Seed of the rendered fields; by default --seed."),
    click.option(
        "--cache",
        metavar="FOLDER",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of the rendered fields, which several trainings may use; by default OUT/cache.",
    ),
    click.option("--pool", hidden=True, type=click.Path(file_okay=False, path_type=Path)),
    options.mpp,
    click.option(
        "--tiles", "unique", type=click.IntRange(1), help="Train on this many unique tiles; by default on all."
    ),
    click.option(
        "--cases",
        metavar="CSV",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Columns slide, case and, if known, date; by default each slide is a case.",
    ),
    click.option(
        "--split",
        "order",
        type=click.Choice(["random", "chronological"]),
        default="random",
        show_default=True,
        help="Order in which cases are kept for testing.",
    ),
    click.option(
        "--test-fraction",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Fraction of the cases kept for testing.",
    ),
    click.option("--test-share", hidden=True, type=click.FloatRange(0, 1, max_open=True)),
    click.option(
        "--folds", type=click.IntRange(2), default=None, help="Divide the cases into this many parts instead."
    ),
    click.option("--fold", type=click.IntRange(0), default=0, show_default=True, help="Part kept for testing, from 0."),
    click.option(
        "--split-seed",
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help="Seed of the choice of cases and of --tiles; the same for trainings of several seeds or folds.",
    ),
    click.option("--every", type=click.IntRange(1), default=500, show_default=True, help="Steps between checkpoints."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=1,
        show_default=True,
        help="Processes that render and sample; 0 samples in the process of the training.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="Threads of a step on the CPU, beside the --workers. By default OMP_NUM_THREADS; without it 1 on two "
        "cores or fewer, else the cores without those of the workers, at most 8.",
    ),
    options.device,
)


_MASKS = (
    click.option(
        "--masks",
        metavar="FOLDER",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Outlined nuclei for the target domain: HoVer-Net JSON, label maps, GeoJSON or ImageScope XML, outlines "
        "with the picture of the same stem beside them; by default those of the rendered fields.",
    ),
    click.option(
        "--mask-mpp",
        metavar="M",
        type=click.FloatRange(0, min_open=True),
        help="Resolution of --masks, µm/px, where a file does not say; by default that of the family.",
    ),
    click.option(
        "--mask-size",
        "mask_size_px",
        metavar="WIDTH HEIGHT",
        nargs=2,
        type=click.IntRange(1),
        help="Size of the outlined pictures, px, where there is no picture of the same stem.",
    ),
)


_TRUTH = (
    click.option(
        "--truth",
        metavar="FOLDER",
        multiple=True,
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Annotated pictures: points or outlines by stem beside them or in FOLDER/truth, as `evaluate cells` reads "
        "them; index.csv may give name, mpp, unmarked, recolour, group, weight. Repeat.",
    ),
    click.option(
        "--unmarked",
        type=click.Choice(["ground", "unknown"]),
        default="ground",
        show_default=True,
        help="What lies between marked nuclei: ground, or unknown where nuclei were left out.",
    ),
    click.option(
        "--recolour", is_flag=True, help="Outlined pictures are of another stain: give them hematoxylin and DAB."
    ),
    click.option(
        "--regions",
        metavar="PATH",
        type=click.Path(exists=True, path_type=Path),
        help="Annotation files by stem: outside their outlines nothing is known.",
    ),
    click.option(
        "--types",
        metavar="N=CLASS,...",
        default="",
        callback=lambda _ctx, _param, text: options.types_of(text),
        help="Classes of the numbers of a type_map: positive, negative or unknown; others are not of the tumour.",
    ),
    click.option(
        "--rendered-fraction",
        type=click.FloatRange(0, 1),
        default=0.36,
        show_default=True,
        help="Fraction of the steps on rendered fields, with --truth.",
    ),
)
_APPEARANCES = click.option(
    "--appearances",
    type=click.Choice(["usual", "wide"]),
    default="usual",
    show_default=True,
    help="Kinds of rendered fields; wide adds small crowded nuclei, nests of low index, grey-brown and black nuclei.",
)


class _Families(click.Group):
    """One command per family that can be trained, made when it is called: its help lists the fields of its Config."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, own in families().items() if own.recipe]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in self.list_commands(ctx) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        listed = self.list_commands(ctx)
        with formatter.section("Families"):
            formatter.write_dl([(name, f"`wsiscore train {name} --help` lists its options.") for name in listed])


@click.group(cls=_Families, epilog="Example: wsiscore train --help")
def train() -> None:
    """Train a generator of a family: on rendered fields, on slides without labels or on aligned pictures."""


def _command(name: str) -> click.Command:
    def run(inputs: tuple[str, ...], out: Path, settings: tuple[str, ...], start: str | None, **given: Any) -> None:
        folder = _run(name, list(options.paths_of(inputs)), out, settings, start, given)
        if folder is not None:
            click.echo(folder)

    side_px = max(_TILE_PX, family(name).spec.multiple_px)
    crop = click.option(
        "--crop", "crop_px", type=click.IntRange(32), default=side_px, show_default=True, help="Side of an item, px."
    )
    own: tuple[Any, ...] = (crop,) if family(name).pairs else (crop, *_MASKS, _APPEARANCES)
    own += _TRUTH if family(name).from_truth else ()
    for option in reversed((*_OPTIONS, *own)):
        run = option(run)
    config = [field.name for field in fields(family(name).config)]
    small = "".join(f" --set {key}={value}" for end, value in _SMALL.items() for key in config if key.endswith(end))
    given = "" if family(name).pairs else " slides/*.svs"
    example = f"Example: wsiscore train {name}{given} -o trial-{name}{small} --steps 2 --batch 1 --crop 64 --fields 1"
    return click.command(name, cls=Command, sections=_SECTIONS, help=_help(name), epilog=example)(run)


def _run(
    name: str, paths: list[Path], out: Path, settings: Sequence[str], start: str | None, given: dict[str, Any]
) -> Path | None:
    """Train, and return the folder of the model; None in all processes of a torchrun but the first."""
    from wsiscore.models.card import read_card
    from wsiscore.models.store import find_model
    from wsiscore.training.inputs import DataOptions
    from wsiscore.training.interrupts import TrainingInterruptedError
    from wsiscore.training.run import RunOptions, run_training

    card = read_card(find_model(start)) if start else None
    config = _config(name, settings, card.config if card else {})
    cache, fraction = given.pop("pool"), given.pop("test_share")  # earlier names
    given["cache"] = given["cache"] or cache
    given["test_fraction"] = given["test_fraction"] if fraction is None else fraction
    given["folds"] = given["folds"] or 0
    if given["fields_seed"] is None:
        given["fields_seed"] = given["seed"]
    run_options, data = (
        {key: given[key] for key in given if key in own.__annotations__} for own in (RunOptions, DataOptions)
    )
    command = shlex.join(["wsiscore", *sys.argv[1:]])

    def tile(path: Path, folder: Path, mpp: float, side_px: int) -> Path:
        from wsiscore.pipeline.options import TileOptions
        from wsiscore.pipeline.steps import tile_slide

        laid = TileOptions(
            out=folder,
            mpp=given["mpp"],
            tile_mpp=mpp,
            tile_px=side_px,
            margin_px=0,
            min_coverage=_COVERAGE,
            save_png=True,
        )
        return tile_slide(path, laid)

    try:
        return run_training(
            config, name, card, paths, out, DataOptions(**data), RunOptions(**run_options), tile, command
        )
    except TrainingInterruptedError as error:
        if os.environ.get("RANK", "0") == "0":
            click.echo(f"Stopped by {error}", err=True)
        raise SystemExit(128 + error.number) from error


def _help(name: str) -> str:
    """Return what the command does, and a list of the options of the family."""
    config = family(name).config
    rows = [(field.name, repr(field.default), field.metadata.get("help", "")) for field in fields(config)]
    wide = max((len(f"{key}={default}") for key, default, _ in rows), default=0)
    listed = "\n".join(f"  {f'{key}={default}':<{wide}}  {text}" for key, default, text in rows) or "  none"
    what = (
        "INPUT are folders of tiles as `wsiscore tile --save png` writes them, or slides; no labels are needed. "
        "Without any, it is trained on rendered fields alone."
    )
    if names := family(name).pairs:
        what = (
            f"INPUT are folders with a sub-folder for each picture of a set ({', '.join(names)}), with pictures of "
            f"equal names at {family(name).spec.mpp:g} µm/px, or aligned slides of equal names; or strips, or folders "
            "of them: the pictures of a set side by side, in this order. Without any, it is trained on rendered ones."
        )
    return (
        f"Train {name}. {what} Prints the folder of the model.\n\n"
        "The same command given again continues an interrupted training. Ctrl-C and SIGTERM end it after the current "
        "step, with a checkpoint. OUT gets checkpoint.pt, losses.csv, sheets/, split.csv and model/.\n\n"
        f"\b\nOptions of the family for --set, with their defaults:\n{listed}"
    )


def _config(name: str, settings: Sequence[str], start: Mapping[str, Any]) -> Any:
    """Return the Config of the family: values of --set, else those of the model to start from."""
    own = family(name)
    config = own.config
    hints = get_type_hints(config)
    known = {field.name: hints[field.name] for field in fields(config)}
    try:
        values = {key: value for key, value in own.current(start).items() if key in known}
    except ValueError as error:
        raise click.UsageError(f"the card of the model to start from is wrong: {error}") from error
    for setting in settings:
        key, sign, text = setting.partition("=")
        key = own.renamed.get(key, key)
        if not sign or key not in known:
            raise click.BadParameter(
                f"{setting!r}: {name} has {', '.join(known) or 'nothing to set'}", param_hint="--set"
            )
        values[key] = _value(key, text, known[key])
    try:
        return config(**values)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--set") from error


def _value(key: str, text: str, hint: Any) -> Any:
    choices = {str(choice): choice for choice in get_args(hint)} if get_origin(hint) is Literal else {}
    if choices:
        kind: Any = click.Choice(list(choices))
    else:
        kind = {int: click.INT, float: click.FLOAT, bool: click.BOOL}.get(hint, click.STRING)
    try:
        value = kind.convert(text, None, None)
        return choices.get(value, value)
    except click.BadParameter as error:
        raise click.BadParameter(f"{key}: {error.message}", param_hint="--set") from error
