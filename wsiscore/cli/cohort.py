"""``wsiscore cohort``: the table of a folder of results."""

from __future__ import annotations

from pathlib import Path

import click

from wsiscore.cli.command import Command
from wsiscore.cli.table import json_lines, print_json, print_table

__all__ = ["cohort"]


@click.command(cls=Command, epilog="\b\nExample: wsiscore cohort results > cohort.tsv")
@click.argument("out", metavar="OUT", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_lines
def cohort(out: Path, json_lines: bool) -> None:
    """Rebuild scores.csv, cases.csv and index.html of a folder of results, and print the table.

    They are made from the folders of the slides that are there now; no slide is read.
    """
    from wsiscore.pipeline.cohort import rebuild_cohort
    from wsiscore.report.statistics import HEADER, entry_json, entry_row

    entries = rebuild_cohort(out)
    if json_lines:
        for entry in entries:
            print_json(entry_json(entry))
    else:
        print_table([HEADER, *map(entry_row, entries)], as_json=False)
