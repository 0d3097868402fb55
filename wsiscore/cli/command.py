"""What all commands have in common: help in sections, -q and -v, and the configuration file."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from wsiscore.cells.rules import rule_fields
from wsiscore.messages import show_messages

__all__ = ["CONFIG", "Command", "Group", "quiet"]

CONFIG = "wsiscore.toml"
"""Name of the configuration file in the working directory."""
_QUIET = "wsiscore.quiet"
_RUN = (
    *("csv", "save", "json_lines", "dry_run", "keep", "cluster", "shard", "threads", "force"),
    *("quiet", "verbose", "config"),
)
_METAVARS: dict[type, str] = {click.IntRange: "N", click.FloatRange: "X"}

_SECTIONS = {
    "Slides and regions": (
        *("manifest", "null", "out", "roi", "roi_classes", "exclude_classes", "slide", "mpp"),
        *("tile_mpp", "margin_px", "min_coverage"),
    ),
    "Model": ("model", "tile_px", "device", "engine", "precision", "batch_size", "maps", "norm", "ome_tiff"),
    "Cells and index": ("cutoff", "count", *rule_fields(), "cells", "author"),
}
"""Sections of the help of commands that read slides, and the parameters in each; others are under "Options"."""


class Command(click.Command):
    """A command with the options of all commands, and help in sections.

    Parameters
    ----------
    sections
        Titles of sections of its help with the parameters in each, instead of those of commands that read slides.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        own = {param.name for param in self.params}
        self.sections = {**(sections or (_SECTIONS if "roi" in own else {})), "Options": (), "Run": _RUN}
        self.params.extend(_common())
        for param in self.params:
            if isinstance(param, click.Option) and param.metavar is None:
                param.metavar = next((sign for kind, sign in _METAVARS.items() if isinstance(param.type, kind)), None)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in sections."""
        listed: dict[str, list[tuple[str, str]]] = {title: [] for title in self.sections}
        titles = {name: title for title, names in reversed(self.sections.items()) for name in names}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)):
                listed["Run" if "--help" in param.opts else titles.get(param.name or "", "Options")].append(record)
        for title, records in listed.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Group(click.Group):
    """A group whose commands are `Command`."""

    command_class = Command


def _common() -> list[click.Option]:
    return [
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_quiet,
            help="No progress and no warnings; run.json keeps them.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_verbose,
            help="Say what is done, and with what.",
        ),
        click.Option(
            ["--config"],
            metavar="FILE",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            expose_value=False,
            callback=_configure,
            help=f"Defaults of the options, TOML; {CONFIG} in the working directory if there is one.",
        ),
    ]


def _quiet(ctx: click.Context, _: click.Parameter, given: bool) -> None:
    if given:
        ctx.meta[_QUIET] = True
        show_messages(logging.ERROR)


def _verbose(_: click.Context, __: click.Parameter, given: bool) -> None:
    if given:
        show_messages(logging.INFO)


def quiet() -> bool:
    """Return whether the command that runs was given -q."""
    return bool(click.get_current_context().meta.get(_QUIET))


def _configure(ctx: click.Context, param: click.Parameter, given: Path | None) -> None:
    """Take the defaults of a command's options from the configuration file."""
    path = given or Path(CONFIG)
    if given is None and not path.is_file():
        return
    try:
        table = _table(ctx, tomllib.loads(path.read_text(encoding="utf-8")))
        ctx.default_map = _defaults(ctx.command, table)
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8, not TOML, nested too deep, an unknown key
        raise click.BadParameter(f"{path}: {error}", ctx, param, param_hint="--config") from error


def _table(ctx: click.Context, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the table of a command, ``[score]`` or ``[evaluate.cells]``; ValueError if one is of no command."""
    if ctx.parent is None:
        return values
    outer = _table(ctx.parent, values)
    group = ctx.parent.command
    known = group.list_commands(ctx.parent) if isinstance(group, click.Group) else []
    for key, value in outer.items():
        if key not in known or not isinstance(value, dict):
            raise ValueError(f"{key!r} is no table of a command; wanted some of [{'], ['.join(known)}]")
    table: Mapping[str, Any] = outer.get(ctx.info_name or "", {})
    return table


def _defaults(command: click.Command, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a table by parameter; ValueError if one is of no option of the command."""
    known = {
        opt.removeprefix("--"): param
        for param in command.params
        if isinstance(param, click.Option) and param.name != "config"
        for opt in param.opts
        if opt.startswith("--")
    }
    found = {}
    for key, value in table.items():
        if key not in known:
            raise ValueError(f"{key!r} is no option of `{command.name}`; wanted some of {', '.join(sorted(known))}")
        option = known[key]
        if isinstance(value, dict) or (isinstance(value, list) and not option.multiple and option.nargs == 1):
            raise ValueError(f"{key} is {value!r}; wanted one value")
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str | int | float) and isinstance(each, bool) == option.is_flag for each in values):
            raise ValueError(
                f"{key} is {value!s:.40}; wanted {'true or false' if option.is_flag else 'a text or a number'}"
            )
        if not option.is_flag:
            values = [str(each) for each in values]  # as on the command line, where 1.5 is no whole number
        found[option.name or key] = values if option.multiple or isinstance(value, list) else values[0]
    return found
