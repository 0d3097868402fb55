"""The slides in a folder."""

from __future__ import annotations

from pathlib import Path

from wsiscore.errors import SlideError
from wsiscore.slide.readers.registry import open_reader

__all__ = ["SUFFIXES", "is_folder_of_slides", "slides_in"]

_OF_SEVERAL_FILES = (".vms", ".vmu", ".dcm")  # in one folder; the files of a MIRAX slide have a folder of their own
_ZARR = (".zattrs", ".zgroup", "zarr.json")
_RECORD = "run.json"  # of a folder of results
SUFFIXES = (
    *_OF_SEVERAL_FILES,
    *(".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".svslide", ".tif", ".tiff", ".qptiff"),
    *(".jpg", ".jpeg", ".png", ".zarr"),
)
"""Ends of the names of slides, in lower case; those of one slide in several files come first."""


def is_folder_of_slides(path: Path) -> bool:
    """Return whether a path is a folder that is not itself a slide, as an OME-Zarr image is."""
    return path.is_dir() and path.suffix.casefold() != ".zarr" and not any((path / name).exists() for name in _ZARR)


def slides_in(folder: Path) -> list[Path]:
    """Return the slides in a folder, sorted by name; sub-folders are not searched.

    Slides are known by the ends of their names (`SUFFIXES`). Hidden files are left out. A slide of several files, as a
    DICOM series, is one path.

    Raises
    ------
    SlideError
        If the folder cannot be read, holds no slide, or is a folder of results.
    """
    if (folder / _RECORD).exists():
        raise SlideError(
            f"{folder} holds the results of a slide; give the slide, or the mosaic in it to score it again"
        )
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise SlideError(f"{folder} cannot be read: {error.strerror or error}") from error
    found = [path for path in paths if path.suffix.casefold() in SUFFIXES and path.is_dir() == (path.suffix == ".zarr")]
    parts: set[Path] = set()
    for path in sorted(found, key=lambda path: SUFFIXES.index(path.suffix.casefold())):
        if path not in parts and path.suffix.casefold() in _OF_SEVERAL_FILES:
            parts |= _other_files(path)
    if not (slides := [path for path in found if path not in parts]):
        raise SlideError(
            f"{folder} holds no slide; wanted files such as .svs, .ndpi, .mrxs or .tif (sub-folders are not searched)"
        )
    return slides


def _other_files(path: Path) -> set[Path]:
    """Return the other files of the slide that begins with a file; none if it cannot be opened."""
    try:
        reader = open_reader(path)
    except SlideError:
        return set()
    files = set(reader.files()) - {path}
    reader.close()
    return files
