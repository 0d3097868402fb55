"""The annotation file beside a slide."""

from __future__ import annotations

from pathlib import Path

from wsiscore.errors import RoiError

__all__ = ["roi_file_beside"]

_SUFFIXES = (".geojson", ".geojson.gz", ".xml", ".annotations")  # not .json: truth is often called that


def roi_file_beside(slide_path: Path) -> Path | None:
    """Return the annotation file beside a slide that has its stem, or None.

    Its suffix is ``.geojson``, ``.geojson.gz``, ``.xml`` or ``.annotations`` in any case. Beside ``a.ome.tif`` both
    ``a.ome.geojson`` and ``a.geojson`` are found.

    Raises
    ------
    RoiError
        If there is more than one.
    """
    stems = {slide_path.stem}
    if slide_path.stem.casefold().endswith(".ome"):
        stems.add(slide_path.stem[: -len(".ome")])
    beside = slide_path.parent.glob("*")
    found = sorted(file for file in beside if _annotation_stem(file) in stems and file.is_file())
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise RoiError(f"{slide_path}: several annotation files lie beside it ({names}); choose one with --roi")
    return found[0] if found else None


def _annotation_stem(file: Path) -> str | None:
    name = file.name
    return next((name[: -len(end)] for end in _SUFFIXES if name.casefold().endswith(end)), None)
