"""``wsiscore infer``: a model over slides."""

from __future__ import annotations

from pathlib import Path

import click

from wsiscore.cli import options

__all__ = ["infer"]


@click.command(epilog="\b\nExample: wsiscore infer slides/*.svs --model hdab -o results")
@options.inputs
@options.model
@options.size
@options.out
@options.roi
@options.roi_class
@options.mpp
@options.device
@options.batch
def infer(
    inputs: tuple[str, ...],
    model: str | None,
    size: str | None,
    out: Path | None,
    roi: Path | None,
    roi_class: tuple[str, ...],
    mpp: float | None,
    device: str,
    batch: int | None,
) -> None:
    """Run a model over slides or tile lists; write OUT/<stem>/mosaic.ome.zarr and print its path.

    A run that was interrupted goes on where it stopped, and ends with the same bytes.
    """
    from wsiscore.pipeline import Settings, infer_slide

    settings = Settings(
        out=out,
        roi=roi,
        roi_classes=roi_class,
        mpp=mpp,
        model=model,
        tile_px=int(size) if size else None,
        device=device,
        batch_size=batch,
    )
    options.each(options.paths_of(inputs, roi), lambda path: infer_slide(path, settings, progress=True).path)
