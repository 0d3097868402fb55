"""``wsiscore export``: results in the formats of other systems."""

from __future__ import annotations

import os
from pathlib import Path

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command
from wsiscore.export.exporters import EXPORTERS, export_slide

__all__ = ["export"]


@click.command(
    cls=Command,
    help="Write the results of scored slides in the formats of other systems, and print the paths.\n\n"
    "Each OUT/STEM is the folder of a slide, or the mosaic in it; the files go there, and scoring the slide again "
    "removes them. What it writes:\n\n\b\n" + "\n".join(f"{each.name:<12} {each.title}" for each in EXPORTERS),
    epilog="\b\nExample: wsiscore export wsiscore-out/low --to fhir --to ome-tiff",
)
@click.argument("inputs", metavar="OUT/STEM...", nargs=-1, required=True)
@click.option(
    "--to",
    "names",
    type=click.Choice([each.name for each in EXPORTERS]),
    multiple=True,
    required=True,
    help="Format; repeat for several.",
)
def export(inputs: tuple[str, ...], names: tuple[str, ...]) -> None:
    """Write the results of scored slides in the formats of other systems."""

    def work(folder: Path) -> None:
        for path in export_slide(folder, names):
            click.echo(os.fsencode(path))

    options.each(options.paths_of(inputs), work)
