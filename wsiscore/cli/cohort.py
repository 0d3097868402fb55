"""``wsiscore cohort``: the table of a folder of results."""

from __future__ import annotations

from pathlib import Path

import click

from wsiscore.cli.command import Command

__all__ = ["cohort"]


@click.command(cls=Command, epilog="\b\nExample: wsiscore cohort results > cohort.tsv")
@click.argument("out", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
def cohort(out: Path) -> None:
    """Rebuild scores.csv, cases.csv and index.html of a folder of results, and print the table.

    They are made from the folders of the slides that are there now; no slide is read.
    """
    from wsiscore.pipeline.cohort import rebuild_cohort
    from wsiscore.report.statistics import HEADER, entry_row

    for fields in (HEADER, *map(entry_row, rebuild_cohort(out))):
        click.echo("\t".join(fields))
