"""The regions in which a slide is scored: drawn annotations, those of a virtual stain, or found tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import shapely

from wsiscore.errors import RoiError
from wsiscore.models.contract import GeneratorSpec
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.options import InferOptions, TileOptions
from wsiscore.regions import Roi, scored
from wsiscore.roi.annotations import read_rois
from wsiscore.roi.beside import roi_file_beside
from wsiscore.roi.classes import subtract, tell_classes
from wsiscore.roi.outlines import clip_rois
from wsiscore.roi.tissue import find_tissue
from wsiscore.slide.readers.omezarr import is_virtual
from wsiscore.slide.slide import Slide
from wsiscore.tiles import TileList

__all__ = ["FOUND_TISSUE", "lay_tiles", "rois_of", "tile_options"]

FOUND_TISSUE = "found tissue"
"""Where regions are from that nobody drew."""


def rois_of(
    slide: Slide, file: Path | None = None, classes: Sequence[str] = (), exclude: Sequence[str] = ()
) -> tuple[list[Roi], str]:
    """Return the ROIs of a slide and their source: the whole path of a file, or "found tissue".

    A virtual stain has the regions of the slide it was generated from, without the parts that could not be read.

    Parameters
    ----------
    slide
        The slide.
    file
        Annotations in level-0 pixels of this slide; by default those beside it with its stem, if there are any.
    classes
        Classes or names to keep of them; by default all.
    exclude
        Classes or names that are not scored, besides those of `wsiscore.roi.classes.NOT_SCORED`. What is not scored is
        cut out of the others. Where an annotation file has nothing else, it is cut out of the found tissue.

    Raises
    ------
    RoiError
        If the annotations cannot be used, classes are asked for without any, or there is no tissue.
    """
    if (file := file or roi_file_beside(slide.path)) is not None:
        drawn = read_rois(
            file, mpp=slide.mpp, classes=tuple(classes), origin_px=slide.origin_px, exclude=tuple(exclude)
        )
        source = str(file.absolute())
        if not classes:
            tell_classes(file.name, drawn)
        if not scored(drawn):
            found, where = _undrawn(slide)
            drawn, source = [*scored(found), *drawn], f"{where} without the excluded regions of {source}"
        return subtract(clip_rois(drawn, slide.width_px * slide.mpp, slide.height_px * slide.mpp)), source
    if classes:
        raise RoiError(f"{slide.path} has no ROI file beside it to choose {', '.join(classes)} from; give --roi")
    return _undrawn(slide)


def tile_options(options: InferOptions, spec: GeneratorSpec) -> TileOptions:
    """Return the tiles that a model reads, in the regions that the options of its run name."""
    return TileOptions(
        roi=options.roi,
        roi_classes=options.roi_classes,
        exclude_classes=options.exclude_classes,
        tile_mpp=spec.mpp,
        tile_px=options.tile_px or spec.tile_px,
        margin_px=spec.margin_px,
    )


def lay_tiles(slide: Slide, options: TileOptions) -> TileList:
    """Return the tiles over the regions of a slide; RoiError if there are no regions, or they cannot be used."""
    rois, source = rois_of(slide, options.roi, options.roi_classes, options.exclude_classes)
    return TileList.plan(
        slide,
        rois,
        mpp=options.tile_mpp,
        tile_px=options.tile_px,
        margin_px=options.margin_px,
        min_coverage=options.min_coverage,
        roi_source=source,
    )


def _undrawn(slide: Slide) -> tuple[list[Roi], str]:
    """Return the regions of a slide without annotations: those of a virtual stain, or found tissue."""
    if is_virtual(slide.path):
        return _of_virtual(Mosaic.open(slide.path))
    if not (tissue := find_tissue(slide)):
        raise RoiError(f"{slide.path} shows no tissue; if there is some, draw it and give it with --roi")
    return tissue, FOUND_TISSUE


def _of_virtual(mosaic: Mosaic) -> tuple[list[Roi], str]:
    rois, unread = list(mosaic.tiles.rois), mosaic.unreadable_um()
    if unread is not None:
        cut = [replace(roi, outline_um=shapely.difference(roi.outline_um, unread)) for roi in rois]
        rois = [roi for roi in cut if not roi.outline_um.is_empty]
    if not rois:
        raise RoiError(f"{mosaic.path} shows nothing: {mosaic.tiles.slide} could not be read where its regions are")
    return rois, mosaic.tiles.roi_source
