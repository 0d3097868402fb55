"""``wsiscore render``: a slide with known cells, or fields of them in several stains."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["render"]


def _stains(_: click.Context, __: click.Parameter, given: str) -> tuple[str, ...]:
    from wsiscore.synthetic.stains import STAINS

    names = tuple(given.split(","))
    if unknown := [name for name in names if name not in STAINS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(STAINS)}")
    return names


@click.command(
    epilog="Example: wsiscore render samples --index 18 --size 1000 --seed 1\n\n"
    "Example: wsiscore render held-back --pairs 2 --stains he,ihc --mpp 0.5 --seed 1"
)
@click.argument("folder", metavar="OUT", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--index", type=click.FloatRange(0, 100), help="Ki67 index, %; by default 20 of a slide, drawn for each pair."
)
@click.option("--size", type=click.IntRange(min=512), help="Side, px; by default 3000 of a slide, 512 of a pair.")
@click.option("--mpp", type=click.FloatRange(0, min_open=True), default=0.25, show_default=True, help="µm/px.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same pixels.")
@click.option("--name", default="rendered", show_default=True, help="Stem of the files.")
@click.option("--pairs", type=click.IntRange(1), help="Write this many fields in several stains instead of a slide.")
@click.option(
    "--stains",
    callback=_stains,
    default="he,ihc",
    show_default=True,
    help="Of pairs: he, ihc, hematoxylin, dapi, lap2, marker, segmentation.",
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
    """Render a Ki67 slide whose every nucleus is known; it is no patient.

    Writes NAME.svs, its ROI NAME.geojson and NAME.truth.csv into OUT, and prints the path of the slide.

    With --pairs it writes fields of the same nuclei in several stains, OUT/<stain>/NAME-0000.png and so on, and the
    nuclei into OUT/truth/, and prints OUT. A family that learns from aligned pictures trains on such a folder, and is
    measured on one of another seed.
    """
    from wsiscore.synthetic.slides import render_pairs, render_slide

    if pairs:
        click.echo(render_pairs(folder, name, pairs, stains, index=index, side_px=size or 512, mpp=mpp, seed=seed))
        return
    side_px = size or 3000
    index = 20.0 if index is None else index
    click.echo(render_slide(folder, name, index=index, width_px=side_px, height_px=side_px, mpp=mpp, seed=seed))
