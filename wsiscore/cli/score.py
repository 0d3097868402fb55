"""``wsiscore score``: slides in, a table out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wsiscore.cli import options

if TYPE_CHECKING:
    from wsiscore.pipeline import Settings
    from wsiscore.report import Entry

__all__ = ["score"]


@click.command(
    epilog="\b\nExample: wsiscore score slides/*.svs --cutoff 20 -o results > cohort.tsv\n"
    "Example: wsiscore score results/*/mosaic.ome.zarr --threshold 0.6"
)
@options.of_slides
@options.of_model
@click.option(
    "--cutoff",
    type=click.FloatRange(0, 100, min_open=True, max_open=True),
    default=20.0,
    show_default=True,
    help="Index at and above which a slide is called high, %.",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="What a cell must exceed in the centre map or, of whole cells, in positive and negative map together; "
    "by default the model's.",
)
@click.option(
    "--radius",
    "radius_um",
    type=click.FloatRange(0, min_open=True),
    help="Half the side of the square in which a cell is the highest point, µm; by default the model's.",
)
@click.option(
    "--least-area",
    "least_area_um2",
    type=click.FloatRange(0),
    help="Of whole cells, area that one must exceed, µm²; by default the model's, or found on the slide.",
)
@click.option("--csv", is_flag=True, help="Write the cells as cells.csv instead of cells.parquet.")
@click.option("--cluster", metavar="ADDRESS", help="Score over the workers of this dask scheduler, a slide a task.")
def score(inputs: tuple[str, ...], cluster: str | None, **chosen: Any) -> None:
    """Score slides, tile lists or mosaics; print one tab-separated line a slide.

    Each slide gets a folder OUT/<stem>/ with report.html, overlay.jpg, score.json, cells.parquet, cells.geojson for
    QuPath, mosaic.ome.zarr and run.json; the cohort scores.csv and index.html. A mosaic is scored anew without
    running the model again. A slide that fails is a line with its reason, and the others go on.
    """
    from wsiscore.pipeline import Settings

    settings = Settings(**chosen)
    raise SystemExit(_print_scores(options.paths_of(inputs, settings.roi), settings, cluster))


def _print_scores(paths: Iterator[Path], settings: Settings, cluster: str | None) -> int:
    """Print the table as it grows, write the cohort at the end, however that comes, and return the exit status."""
    from wsiscore.cohort import fields_of, score_slides, write_cohort
    from wsiscore.report import HEADER

    click.echo("\t".join(HEADER))
    cohorts: defaultdict[Path, list[Entry]] = defaultdict(list)
    try:
        for out, entry in score_slides(paths, settings, cluster=cluster, progress=True):
            cohorts[out].append(entry)
            click.echo("\t".join(fields_of(entry)))
    finally:
        for out, entries in cohorts.items():
            write_cohort(out, entries)
    return int(any(entry.score is None for entries in cohorts.values() for entry in entries))
