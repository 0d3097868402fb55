"""``wsiscore models``: what models there are, what one is, and import of published weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from wsiscore.cli.command import Group
from wsiscore.cli.table import json_lines, print_row, print_table
from wsiscore.models.registry import names

if TYPE_CHECKING:
    from wsiscore.models.card import Card

__all__ = ["models"]

_COLUMNS = ("name", "family", "version", "mpp", "tile_px", "channels", "default", "description")
_TEXTS = ("name", "family", "version", "channels", "description")


@click.group(cls=Group, epilog="Example: wsiscore models list")
def models() -> None:
    """List the models that come with wsiscore, describe one, or import published weights."""


@models.command("list", epilog="Example: wsiscore models list | cut -f 1,8")
@json_lines
def list_models(json_lines: bool) -> None:
    """Print the models there are, one a line, tab separated.

    mpp is in µm per pixel, tile_px is the side of a tile in pixels, the default is marked "default". A family
    that comes without a model has a line with "-" for its name.
    """
    from wsiscore.models.card import read_card
    from wsiscore.models.store import default_model, find_model, model_names

    cards = [read_card(find_model(name)) for name in model_names()]
    rows = [_row(card, is_default=card.name == default_model()) for card in cards]
    for family in sorted(set(names()) - {card.family for card in cards}):
        rows.append(("-", family, *"-----", "No model comes with wsiscore yet: train or import one."))
    if not json_lines:
        print_table([_COLUMNS], as_json=False)
    for row in rows:
        print_row(_COLUMNS, row, _TEXTS, as_json=json_lines)


@models.command(epilog="Example: wsiscore models info hdab")
@click.argument("model", metavar="NAME_OR_FOLDER")
def info(model: str) -> None:
    """Print what a model is, what it was trained and measured on, and what it reads and gives."""
    from wsiscore.models.card import read_card
    from wsiscore.models.store import find_model

    click.echo(_description(read_card(find_model(model))))


@models.command(
    "import", epilog="Example: wsiscore models import IHCScoreGAN_40000.pt --family ihcscoregan -o published"
)
@click.argument("source", metavar="FILE_OR_FOLDER", type=click.Path(path_type=Path))
@click.option("--family", required=True, type=click.Choice(names()), help="Generator family of the weights.")
@click.option(
    "-o", "folder", required=True, type=click.Path(path_type=Path), help="New folder; its last part names the model."
)
def import_model(source: Path, family: str, folder: Path) -> None:
    """Turn the weights that a published program comes with into a model, and print its folder.

    Code in the file is not run. Only what scoring needs is kept, so the model may be smaller than the file.
    """
    from wsiscore.models.store import import_published

    import_published(source, family, folder)
    click.echo(folder)


def _row(card: Card, *, is_default: bool) -> tuple[str, ...]:
    spec = card.spec
    return (
        *(card.name, card.family, card.version, f"{spec.mpp:g}", f"{spec.tile_px}"),
        *("/".join(spec.channels), "default" if is_default else "-", card.description),
    )


def _description(card: Card) -> str:
    spec = card.spec
    rules = spec.rules.to_json() if spec.rules else {}
    values = ", ".join(
        f"{name} {'found on the slide' if rule is None else f'{rule:g}'}" for name, rule in rules.items()
    )
    measured = [
        (label if not index else "", f"{each.set}: {each.metric} {each.value}  ({each.command})")
        for label, entries in (("chosen on", card.chosen_on), ("tested on", card.tested_on))
        for index, each in enumerate(entries)
    ]
    lines = [
        ("name", f"{card.name}, version {card.version}, family {card.family}"),
        ("what", card.description),
        ("trained on", card.trained_on),
        *measured,
        *(() if card.tested_on else (("tested on", "nothing that its weights or rules were not chosen by"),)),
        ("reads", f"{spec.mpp:g} µm/px, tiles of {spec.tile_px} px or another multiple of {spec.multiple_px} px"),
        ("margin", f"{spec.margin_px} px of a tile are read but not kept"),
        ("gives", f"{', '.join(spec.channels)} as {spec.dtype}"),
        ("cells", values or "none: it generates a virtual stain"),
        ("polarity", card.polarity or "follows from the method"),
        ("config", ", ".join(f"{key}={value}" for key, value in card.config.items()) or "the family's defaults"),
        ("licence", card.licence),
        ("sha256", card.weights.sha256 if card.weights else "no weights"),
    ]
    return "\n".join(f"{label:<12} {text}" for label, text in lines)
