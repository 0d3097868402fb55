"""``wsiscore view``: a slide and its cells in the browser."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

import click

from wsiscore.cli.command import Command

__all__ = ["view"]


@click.command(cls=Command, epilog="Example: wsiscore view wsiscore-out/low")
@click.argument("folder", metavar="OUT/STEM", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--slide",
    metavar="FILE",
    type=click.Path(exists=True, path_type=Path),
    help="Where the slide is now, if it was moved.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default="a free one",
    help="Port to serve on.",
)
def view(folder: Path, slide: Path | None, port: int) -> None:
    """Show a slide at full resolution with its cells, from the folder of its results.

    Prints the address to open in a browser of this machine, and serves it until Ctrl-C; other machines cannot reach it.
    """
    from wsiscore.pipeline.view import serving

    with suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with serving(folder, slide, port) as server:
            click.echo(server.address)
            click.echo("Open this address in a browser of this machine; Ctrl-C ends it.", err=True)
            server.serve_forever()
