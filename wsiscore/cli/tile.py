"""``wsiscore tile``: the grid of tiles over the regions of slides."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from wsiscore.cli import options

__all__ = ["tile"]


@click.command(
    epilog="\b\nExample: ls slides/*.svs | wsiscore tile - --size 256 | wsiscore infer - --model ihcscoregan"
)
@options.of_slides
@click.option(
    "--at", type=click.FloatRange(0, min_open=True), default=0.5, show_default=True, help="Scale of the tiles, µm/px."
)
@click.option("--size", type=options.TILE_SIZES, default=512, show_default=True, help="Side of a tile, px.")
@click.option("--margin", type=click.IntRange(0, 127), default=32, show_default=True, help="Rim read but not kept, px.")
@click.option(
    "--min-coverage",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Least share of a tile's core inside the regions; at 0 every tile that one touches.",
)
@click.option("--save", type=click.Choice(["png"]), help="Also write the tiles themselves, for training.")
def tile(
    inputs: tuple[str, ...], at: float, size: int, margin: int, min_coverage: float, save: str | None, **chosen: Any
) -> None:
    """Lay tiles over the regions of slides; write OUT/<stem>/tiles.json and print its path.

    The cores of the tiles, what is left without their margins, partition the slide.
    """
    from wsiscore.pipeline import Settings, tile_slide

    settings = Settings(**chosen)
    lay = partial(tile_slide, settings=settings, mpp=at, tile_px=size, margin_px=margin, min_coverage=min_coverage)
    options.each(options.paths_of(inputs, settings.roi), lambda path: lay(path, save_png=save is not None))
