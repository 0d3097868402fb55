"""``wsiscore render``: a synthetic slide with known nuclei, or synthetic fields in several stains."""

from __future__ import annotations

from pathlib import Path

import click

from wsiscore.cli.command import Command

__all__ = ["render"]


def _stains(_: click.Context, __: click.Parameter, given: str) -> tuple[str, ...]:
    from wsiscore.synthetic.stains import STAINS

    names = tuple(given.split(","))
    if unknown := [name for name in names if name not in STAINS]:
        raise click.BadParameter(f"unknown stain {unknown[0]!r}; choose from {', '.join(STAINS)}")
    return names


@click.command(
    cls=Command,
    epilog="Example: wsiscore render samples --index 18 --size 1000 --seed 1\n\n"
    "Example: wsiscore render held-back --pairs 2 --stains he,ihc --mpp 0.5 --seed 1",
)
@click.argument("folder", metavar="OUT", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--index",
    type=click.FloatRange(0, 100),
    help="Ki67 index, %; by default 20 for a slide, sampled for each field of --pairs.",
)
@click.option(
    "--size", type=click.IntRange(min=512), help="Side, px; by default 3000 for a slide, 512 for a field of --pairs."
)
@click.option("--mpp", type=click.FloatRange(0, min_open=True), default=0.25, show_default=True, help="µm/px.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Random seed; the same seed gives the same pixels.",
)
@click.option("--name", default="rendered", show_default=True, help="Stem of the files.")
@click.option("--pairs", type=click.IntRange(1), help="Write this many fields in several stains instead of a slide.")
@click.option(
    "--stains",
    callback=_stains,
    default="he,ihc",
    show_default=True,
    help="Stains of --pairs: he, ihc, hematoxylin, dapi, lap2, marker, segmentation.",
)
def render(
    folder: Path,
    index: float | None,
    size: int | None,
    mpp: float,
    seed: int,
    name: str,
    pairs: int | None,
    stains: tuple[str, ...],
) -> None:
    """Render a synthetic Ki67 slide with known nuclei.

    Writes NAME.svs, its ROI NAME.geojson and its nuclei NAME.truth.csv into OUT, and prints the path of the slide.

    With --pairs it writes fields in several stains, OUT/<stain>/NAME-0000.png and so on, and their nuclei into
    OUT/truth/, and prints OUT. Generators of virtual stains can be trained on such a folder and tested on one of
    another seed.
    """
    from wsiscore.synthetic.slides import render_pairs, render_slide

    if pairs:
        click.echo(render_pairs(folder, name, pairs, stains, index=index, side_px=size or 512, mpp=mpp, seed=seed))
        return
    side_px = size or 3000
    index = 20.0 if index is None else index
    click.echo(render_slide(folder, name, index=index, width_px=side_px, height_px=side_px, mpp=mpp, seed=seed))
