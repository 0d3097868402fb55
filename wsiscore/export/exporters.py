"""The list of exporters: what a slide's results can be written as, on request.

A new format is one function ``write(path, results)`` in a module here and one entry of `EXPORTERS`.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsiscore.errors import ExportError
from wsiscore.export.results import SlideResults
from wsiscore.files import locked, remove_parts, replacing

__all__ = ["EXPORTERS", "Exporter", "export_slide", "remove_exports"]


@dataclass(frozen=True, slots=True)
class Exporter:
    """A format of another system.

    Parameters
    ----------
    name
        As the command line has it.
    file
        Name of the file or folder in the slide's folder.
    title
        What it holds, in a few words.
    function
        ``module:function`` of this package, loaded when it is needed; ``function(path, results)`` writes it.
    """

    name: str
    file: str
    title: str
    function: str

    def write(self, results: SlideResults) -> Path:
        """Write it, whole or not at all, and return its path; WsiscoreError if that is not possible."""
        module, _, function = self.function.partition(":")
        write = getattr(importlib.import_module(f"wsiscore.export.{module}"), function)
        path = results.folder / self.file
        with replacing(path) as part:
            try:
                write(part, results)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)  # a folder; replacing() removes a file
                raise
            if path.is_dir():
                shutil.rmtree(path)
        return path


EXPORTERS: tuple[Exporter, ...] = (
    Exporter("fhir", "score.fhir.json", "the index as an HL7 FHIR Observation", "fhir:write_observation"),
    Exporter("ome-tiff", "maps.ome.tif", "the maps of the model, for QuPath", "maps:write_maps"),
    Exporter(
        "spatialdata", "cells.spatialdata.zarr", "the cells and regions as SpatialData", "spatialdata:write_spatialdata"
    ),
    Exporter("dicom", "dicom", "the cells and the index as DICOM, of a DICOM slide", "dicom:write_dicom"),
)
"""What `wsiscore export` writes, in the order of its help."""


def export_slide(folder: Path, names: Sequence[str]) -> list[Path]:
    """Write the results in a slide's folder in other formats, beside them.

    Parameters
    ----------
    folder
        Of a scored slide, or the mosaic in it.
    names
        Of exporters.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    ExportError
        If the folder holds no results, or they cannot be written so.
    WsiscoreError
        A leaf of it, for whatever is wrong with them.
    """
    folder = folder.parent if (folder / "zarr.json").is_file() else folder
    if not folder.is_dir():
        raise ExportError(f"{folder} is no folder; wanted that of a slide that `wsiscore score` has written")
    with locked(folder.parent, folder.name):
        remove_parts(folder)
        for part in folder.glob(".*.part"):  # a folder that a killed process left
            shutil.rmtree(part, ignore_errors=True)
        results = SlideResults.read(folder)
        return [exporter.write(results) for exporter in EXPORTERS if exporter.name in names]


def remove_exports(folder: Path) -> None:
    """Remove what was exported from a slide's folder, as the results that it was made from are replaced."""
    for exporter in EXPORTERS:
        if (folder / exporter.file).is_dir():
            shutil.rmtree(folder / exporter.file, ignore_errors=True)
        (folder / exporter.file).unlink(missing_ok=True)
