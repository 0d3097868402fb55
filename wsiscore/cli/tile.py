"""``wsiscore tile``: the grid of tiles over the regions of slides."""

from __future__ import annotations

from typing import Any

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command

__all__ = ["tile"]


@click.command(
    cls=Command,
    epilog="\b\nExample: ls slides/*.svs | wsiscore tile - --size 512 | wsiscore infer - --model ihcscoregan",
)
@options.of_slides
@click.option(
    "--at",
    "tile_mpp",
    metavar="M",
    type=options.FiniteRange(0, min_open=True),
    default=0.5,
    show_default=True,
    help="Resolution of the tiles, µm/px.",
)
@click.option("--size", "tile_px", type=options.TILE_SIZES, default=512, show_default=True, help="Side of a tile, px.")
@click.option(
    "--margin",
    "margin_px",
    type=click.IntRange(0, 127),
    default=32,
    show_default=True,
    help="Border of a tile that is read but not kept, px.",
)
@click.option(
    "--min-coverage",
    type=options.FiniteRange(0, 1),
    default=0.0,
    show_default=True,
    help="Smallest fraction of a tile's core inside the regions; at 0 every tile that one touches.",
)
@click.option("--save", type=click.Choice(["png"]), help="Also write the tiles themselves, for training.")
def tile(inputs: tuple[str, ...], save: str | None, **chosen: Any) -> None:
    """Lay tiles over the regions of slides; write OUT/<stem>/tiles.json and print its path.

    The cores of the tiles, without their margins, partition the slide.
    """
    from wsiscore.pipeline.options import TileOptions
    from wsiscore.pipeline.steps import tile_slide

    given = TileOptions(save_png=save is not None, **options.checked(chosen))
    own = options.named_apart(inputs, given)
    options.each(options.paths_of(inputs, given.roi, given.slide), lambda path: tile_slide(path, own(path)))
