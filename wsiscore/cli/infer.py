"""``wsiscore infer``: a model over slides."""

from __future__ import annotations

from typing import Any

import click

from wsiscore.cli import options
from wsiscore.cli.command import Command, quiet

__all__ = ["infer"]


@click.command(cls=Command, epilog="\b\nExample: wsiscore infer slides/*.svs --model ihcscoregan -o results")
@options.of_slides
@options.of_model
@click.option("--ome-tiff", is_flag=True, help="Write a virtual stain as pyramidal OME-TIFF too, without loss.")
def infer(inputs: tuple[str, ...], **chosen: Any) -> None:
    """Run a model over slides or tile lists; write OUT/<stem>/mosaic.ome.zarr and print its path.

    A model that generates a virtual stain writes an image there, which `wsiscore score` takes as a slide.
    An interrupted run continues where it stopped, and ends with the same bytes.
    """
    from wsiscore.pipeline.options import InferOptions
    from wsiscore.pipeline.steps import infer_slide

    given = InferOptions(**options.checked(chosen))
    own = options.named_apart(inputs, given)
    options.each(
        options.paths_of(inputs, given.roi, given.slide),
        lambda path: infer_slide(path, own(path), progress=not quiet()).path,
    )
