"""The command line: one module a command, loaded when it is called."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import signal
import sys
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from wsiscore import __version__
from wsiscore.errors import WsiscoreError
from wsiscore.messages import show_messages

__all__ = ["main"]

_COMMANDS = {
    "score": "Score slides, tile lists or mosaics; print a table.",
    "view": "Show a scored slide with every cell in the browser.",
    "export": "Write the results of slides in the formats of other systems.",
    "cohort": "Rebuild the table and the page of a folder of results.",
    "tile": "Lay tiles over the regions of slides.",
    "infer": "Run a model over slides or tile lists.",
    "info": "Say what slides and mosaics are.",
    "models": "List, describe and import models.",
    "evaluate": "Measure results against annotated cells, masks, pictures or clinical values.",
    "doctor": "Check this computer; say how long slides take.",
    "calibrate": "Choose the rules of a model on annotated slides.",
    "train": "Train a generator on annotated or rendered nuclei, slides or aligned pictures.",
    "render": "Render a Ki67 slide with known cells.",
}
"""Name of the module and of the command in it, and what the overview says, so that it need load none of them."""


class _Commands(click.Group):
    """Loads a command when it is asked for, and turns errors that a user can correct into one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"wsiscore.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and Path(name).exists():
            ctx.fail(f"{name!r} is a file, not a command; to score it: wsiscore score {name}")
        if name not in _COMMANDS and (near := get_close_matches(name, _COMMANDS, 1)):
            ctx.fail(f"No such command {name!r}; is it {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return self._invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Aborted!", err=True)
            raise SystemExit(128 + signal.SIGINT) from None

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except WsiscoreError as error:
            raise click.ClickException(" ".join(str(error).split())) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # click ends quietly
                raise
            if error.filename is not None:
                raise click.ClickException(f"{str(error.filename)[:200]!r}: {error.strerror}") from error
            if error.errno == errno.ENOENT:
                raise click.ClickException("the working directory is gone; change to another one") from error
            with suppress(OSError):  # what is still buffered cannot be written either
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.ClickException(f"cannot write to standard output: {error.strerror or error}") from error
        return result


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExample: wsiscore doctor\nExample: wsiscore score slides/*.svs > cohort.tsv\n"
    "Example: wsiscore view wsiscore-out/low",
)
@click.version_option(__version__, prog_name="wsiscore")
def main() -> None:
    """Turn immunohistochemistry slides into a Ki67 index that can be trusted and checked.

    Results go to standard output, one line a slide; messages and progress to standard error. "-" reads paths from
    standard input. Exit status 0: all done; 1: some slide failed; 2: wrong usage. For research use only.
    """
    show_messages(logging.WARNING)
