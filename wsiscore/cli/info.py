"""``wsiscore info``: what slides and mosaics are."""

from __future__ import annotations

from pathlib import Path

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command
from wsiscore.cli.table import json_lines, print_row, print_table

__all__ = ["info"]

_COLUMNS = ("path", "format", "width_px", "height_px", "mpp", "levels", "size_mm", "regions", "model", "tiles_done")
_TEXTS = ("path", "format", "size_mm", "regions", "model", "tiles_done")


@click.command(cls=Command, epilog="Example: wsiscore info slides/*.svs | column -t -s $'\\t'")
@options.inputs
@options.mpp
@json_lines
def info(inputs: tuple[str, ...], mpp: float | None, json_lines: bool) -> None:
    """Print what slides and mosaics are, one tab-separated line each.

    mpp is in µm per pixel; regions is the annotation file beside the slide, or where a mosaic's regions are from;
    model and tiles_done, done of listed, are of a mosaic.
    """
    if not json_lines:
        print_table([_COLUMNS], as_json=False)
    options.each(
        options.paths_of(inputs),
        lambda path: print_row(_COLUMNS, _mosaic(path) or _slide(path, mpp), _TEXTS, as_json=json_lines),
    )


def _mosaic(path: Path) -> tuple[str, ...] | None:
    if not (path / "done").is_dir():
        return None
    from wsiscore.mosaic import Mosaic

    mosaic = Mosaic.open(path)
    grid, listed = mosaic.grid, len(mosaic.tiles.tiles)
    model, done = str(mosaic.about["model"].get("name", "-")), f"{listed - mosaic.missing()}/{listed}"
    size = f"{grid.width_px * grid.mpp / 1e3:.2f}x{grid.height_px * grid.mpp / 1e3:.2f}"
    shape = (str(grid.width_px), str(grid.height_px), f"{grid.mpp:g}")
    return (str(path), "wsiscore mosaic", *shape, "-", size, mosaic.tiles.roi_source, model, done)


def _slide(path: Path, mpp: float | None) -> tuple[str, ...]:
    from wsiscore.roi.beside import roi_file_beside
    from wsiscore.slide.slide import Slide

    with Slide(path, mpp) as slide:
        size = f"{slide.width_px * slide.mpp / 1e3:.2f}x{slide.height_px * slide.mpp / 1e3:.2f}"
        shape = (str(slide.width_px), str(slide.height_px), f"{slide.mpp:.4g}", str(len(slide.level_mpp)))
        return (str(path), slide.format, *shape, size, str(roi_file_beside(path) or "-"), "-", "-")
