"""``wsiscore render``: a slide with known cells."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["render"]


@click.command(epilog="Example: wsiscore render samples --index 18 --size 3000 --seed 1")
@click.argument("folder", metavar="OUT", type=click.Path(file_okay=False, path_type=Path))
@click.option("--index", type=click.FloatRange(0, 100), default=20.0, show_default=True, help="Ki67 index, %.")
@click.option("--size", type=click.IntRange(min=512), default=3000, show_default=True, help="Side, px.")
@click.option("--mpp", type=click.FloatRange(0, min_open=True), default=0.25, show_default=True, help="µm/px.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same slide.")
@click.option("--name", default="rendered", show_default=True, help="Stem of the files.")
def render(folder: Path, index: float, size: int, mpp: float, seed: int, name: str) -> None:
    """Render a Ki67 slide whose every nucleus is known; it is no patient.

    Writes NAME.svs, its ROI NAME.geojson and NAME.truth.csv into OUT, and prints the path of the slide.
    """
    from wsiscore.synthetic import render_slide

    path = render_slide(folder, name, index=index, width_px=size, height_px=size, mpp=mpp, seed=seed)
    click.echo(path)
