"""``wsiscore train``: a generator learns from rendered truth, from unlabelled slides or from aligned pictures."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import click

from wsiscore.cli import options
from wsiscore.models.registry import families, family

if TYPE_CHECKING:
    from wsiscore.models.card import Card
    from wsiscore.models.contract import GeneratorSpec
    from wsiscore.pipeline.options import TileOptions
    from wsiscore.training.data import Sources
    from wsiscore.training.folds import Split
    from wsiscore.training.pairs import Pairs

__all__ = ["train"]

_TILE_PX = 256  # of tiles cut here from slides
_COVERAGE = 0.5  # of such a tile's core inside the regions
_SMALL = {"width": 8, "downsamplings": 5}  # ends of the names of options that make a network small, for examples


_OPTIONS = (
    click.argument("inputs", metavar="[INPUT]...", nargs=-1),
    click.option(
        "-o",
        "out",
        metavar="OUT",
        required=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder to fill.",
    ),
    click.option("--set", "settings", metavar="KEY=VALUE", multiple=True, help="An option of the family; repeat."),
    click.option("--steps", type=click.IntRange(1), default=10_000, show_default=True, help="Gradient steps."),
    click.option("--batch", type=click.IntRange(1), default=4, show_default=True, help="Items a step and process."),
    click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same training."),
    click.option("--start", metavar="NAME|FOLDER", help="Model of the family to start from."),
    click.option("--fields", type=click.IntRange(1), default=2000, show_default=True, help="Rendered fields."),
    click.option(
        "--pool",
        metavar="FOLDER",
        type=click.Path(file_okay=False, path_type=Path),
        help="Where the rendered fields lie or are to lie, for several trainings to share; by default OUT/pool.",
    ),
    options.mpp,
    click.option(
        "--tiles", "unique", type=click.IntRange(1), help="Train on this many unique tiles; by default on all."
    ),
    click.option(
        "--cases",
        metavar="CSV",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="Columns slide, case and perhaps date; by default each slide is a case.",
    ),
    click.option(
        "--split",
        type=click.Choice(["random", "chronological"]),
        default="random",
        show_default=True,
        help="Order in which cases are kept for testing.",
    ),
    click.option(
        "--test-share",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.0,
        show_default=True,
        help="Share of the cases kept for testing.",
    ),
    click.option("--folds", type=click.IntRange(2), help="Divide the cases into this many parts instead."),
    click.option("--fold", type=click.IntRange(0), default=0, show_default=True, help="Part kept for testing, from 0."),
    click.option("--every", type=click.IntRange(1), default=500, show_default=True, help="Steps between checkpoints."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=1,
        show_default=True,
        help="Processes that render and draw; 0 draws in the training's own.",
    ),
    options.device,
)


_MASKS = click.option(
    "--masks",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Outlined nuclei for the target domain: HoVer-Net JSON, label maps, GeoJSON or ImageScope XML; "
    "by default those of the rendered fields.",
)


class _Families(click.Group):
    """One command for each family that can be trained, made when it is called: its help lists the family's Config."""

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
    """Train a generator of a family, on rendered truth, on slides without a label or on aligned pictures."""


def _command(name: str) -> click.Command:
    def run(inputs: tuple[str, ...], out: Path, settings: tuple[str, ...], start: str | None, **given: Any) -> None:
        from wsiscore.models.card import read_card
        from wsiscore.models.store import find_model

        card = read_card(find_model(start)) if start else None
        config = _config(name, settings, card.config if card else {})
        click.echo(_run(name, config, list(options.paths_of(inputs)), out, card, **given))

    side_px = max(_TILE_PX, family(name).spec.multiple_px)
    crop = click.option(
        "--crop", type=click.IntRange(32), default=side_px, show_default=True, help="Side of an item, px."
    )
    own = (crop,) if family(name).pairs else (crop, _MASKS)
    for option in reversed((*_OPTIONS, *own)):
        run = option(run)
    config = [field.name for field in fields(family(name).config)]
    small = "".join(f" --set {key}={value}" for end, value in _SMALL.items() for key in config if key.endswith(end))
    given = "" if family(name).pairs else " slides/*.svs"
    example = f"Example: wsiscore train {name}{given} -o trial-{name}{small} --steps 2 --batch 1 --crop 64 --fields 1"
    return click.command(name, help=_help(name), epilog=example)(run)


def _run(
    name: str, config: Any, paths: list[Path], out: Path, start: Card | None, *, device: str, **given: Any
) -> Path:
    """Lay out what is trained on, train, and return the model's folder."""
    from wsiscore.training.finish import write_trained
    from wsiscore.training.loop import TrainSettings, train

    began = time.monotonic()
    spec = start.spec if start else family(name).spec
    lay_out = _pairs if family(name).pairs else _sources
    sources = lay_out(spec, paths, out, **given)
    steps, batch, crop, seed = (int(given[key]) for key in ("steps", "batch", "crop", "seed"))
    sha256 = start.weights.sha256 if start and start.weights else None
    training = TrainSettings(name, asdict(config), steps, batch, crop, seed, sha256)
    recipe = train(
        out,
        training,
        sources,
        start=start.folder if start else None,
        device=device,
        workers=given["workers"],
        every=given["every"],
        progress=True,
    )
    minutes = (time.monotonic() - began) / 60
    told = f"Command: {shlex.join(['wsiscore', *sys.argv[1:]])} ({minutes:.0f} minutes on {device})."
    write_trained(out / "model", recipe, training, sources, spec, name=out.resolve().name, told=told)
    return out / "model"


def _sources(spec: GeneratorSpec, paths: list[Path], out: Path, **given: Any) -> Sources:
    from wsiscore.training.data import Sources
    from wsiscore.training.folds import write_split
    from wsiscore.training.prepare import PoolSettings, render_pool
    from wsiscore.training.targets import NUCLEI_SUFFIXES

    masks: Sequence[Path] = ()
    if given["masks"]:
        masks = sorted(path for path in given["masks"].rglob("*") if path.suffix.lower() in NUCLEI_SUFFIXES)
        if not masks:
            raise click.UsageError(f"{given['masks']} holds no file of outlined nuclei ({', '.join(NUCLEI_SUFFIXES)})")
    chosen: tuple[Path, ...] = ()
    if paths:
        split = _split([tile for path in paths for tile in _tiles_of(path, spec, out, given["mpp"])], **given)
        write_split(out / "split.csv", split)
        chosen = split.train
    settings = PoolSettings(given["fields"], _TILE_PX, spec.mpp, given["seed"])
    pool = render_pool(given["pool"] or out / "pool", settings, workers=given["workers"], progress=True)
    return Sources(pool, chosen, tuple(masks))


def _pairs(spec: GeneratorSpec, paths: list[Path], out: Path, **given: Any) -> Pairs:
    """Return the aligned pictures to train on; without any given, rendered ones."""
    from wsiscore.synthetic.stains import STAINS
    from wsiscore.training.folds import write_split
    from wsiscore.training.pairs import Pairs, find_pairs, find_slides
    from wsiscore.training.prepare import PairPoolSettings, render_pool

    names, derived = family(spec.family).pairs, family(spec.family).derived
    side_px = max(_TILE_PX, given["crop"])
    if not paths:
        if missing := [name for name in names if name not in STAINS]:
            raise click.UsageError(f"pictures called {missing[0]!r} cannot be rendered; give aligned ones as INPUT")
        settings = PairPoolSettings(given["fields"], side_px, spec.mpp, given["seed"], names)
        pool = render_pool(given["pool"] or out / "pool", settings, workers=given["workers"], progress=True)
        return Pairs(names, pool=pool, derived=derived)
    slides = {path: find_slides(path, names) for path in paths}
    for files in chain(*slides.values()):
        _tile_pair(files, names, out / "tiles", side_px, spec.mpp, given["mpp"])
    places = dict.fromkeys(out / "tiles" if slides[path] else path for path in paths)
    found = [one for place in places for one in find_pairs(place, names)]
    of = {one.files[0]: one for one in found}
    split = _split(list(of), lambda file: of[file].slide, **given)
    write_split(out / "split.csv", split, lambda file: of[file].slide)
    return Pairs(names, tuple(of[file] for file in split.train), derived=derived)


def _tile_pair(
    files: Sequence[Path], names: Sequence[str], out: Path, side_px: int, mpp: float, given: float | None
) -> None:
    """Cut aligned slides into tiles at the same places, into ``<name>/<stem>/tiles/`` of `out`."""
    from wsiscore.pipeline.steps import tile_slide
    from wsiscore.tiles import TileList
    from wsiscore.training.pairs import tile_alike

    laid = tile_slide(files[0], _tiling(out / names[0], given, mpp, side_px))
    for name, file in zip(names[1:], files[1:], strict=True):
        tile_alike(TileList.read(laid), file, out / name / laid.parent.name / "tiles", given)


def _split(tiles: list[Path], slide_of: Callable[[Path], str] | None = None, **given: Any) -> Split:
    """Return the tiles to train on and those kept back."""
    from wsiscore.training.folds import read_cases, slide_of_tile, split_by_case

    return split_by_case(
        tiles,
        slide_of=slide_of or slide_of_tile,
        cases=read_cases(given["cases"]) if given["cases"] else None,
        folds=given["folds"] or 0,
        fold=given["fold"],
        order=given["split"],
        test_share=given["test_share"],
        seed=given["seed"],
        unique=given["unique"],
    )


def _tiling(out: Path, slide_mpp: float | None, tile_mpp: float, tile_px: int) -> TileOptions:
    from wsiscore.pipeline.options import TileOptions

    return TileOptions(
        out=out,
        mpp=slide_mpp,
        tile_mpp=tile_mpp,
        tile_px=tile_px,
        margin_px=0,
        min_coverage=_COVERAGE,
        save_png=True,
    )


def _tiles_of(path: Path, spec: GeneratorSpec, out: Path, mpp: float | None) -> list[Path]:
    """Return the PNGs in a folder of tiles; a slide is cut into tiles first, beside the training."""
    if path.is_dir() and (tiles := sorted(path.rglob("*.png"))):
        return tiles
    from wsiscore.pipeline.steps import tile_slide

    laid = tile_slide(path, _tiling(out / "tiles", mpp, spec.mpp, _TILE_PX))
    return sorted((laid.parent / "tiles").glob("*.png"))


def _help(name: str) -> str:
    """Say what the command does, and list the family's own options."""
    config = family(name).config
    rows = [(field.name, repr(field.default), field.metadata.get("help", "")) for field in fields(config)]
    wide = max((len(f"{key}={default}") for key, default, _ in rows), default=0)
    listed = "\n".join(f"  {f'{key}={default}':<{wide}}  {text}" for key, default, text in rows) or "  none"
    what = (
        "INPUT are folders of tiles as `wsiscore tile --save png` writes them, or slides; none of them needs a label. "
        "Without any it learns from rendered truth alone."
    )
    if names := family(name).pairs:
        what = (
            f"INPUT are folders with a sub-folder for each picture of a set ({', '.join(names)}), holding pictures of "
            f"equal names at {family(name).spec.mpp:g} µm/px, or aligned slides of equal names; or strips, or folders "
            "of them: the pictures of a set side by side, in this order. Without any it learns from rendered ones."
        )
    return (
        f"Train {name}. {what} Prints the folder of the model.\n\n"
        "A training that was interrupted goes on when the same command is given again. OUT gets checkpoint.pt, "
        "losses.csv, sheets/, split.csv and model/.\n\n"
        f"\b\nOptions of the family for --set, with their defaults:\n{listed}"
    )


def _config(name: str, settings: Sequence[str], start: Mapping[str, Any]) -> Any:
    """Return the family's Config with what --set says, and else as in the model to start from."""
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
    if get_origin(hint) is Literal:
        kind: Any = click.Choice([str(choice) for choice in get_args(hint)])
    else:
        kind = {int: click.INT, float: click.FLOAT, bool: click.BOOL}.get(hint, click.STRING)
    try:
        return kind.convert(text, None, None)
    except click.BadParameter as error:
        raise click.BadParameter(f"{key}: {error.message}", param_hint="--set") from error
