"""Files: written whole or not at all, and what a slide's file is called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsiscore.errors import OutputError

__all__ = ["replacing", "stem"]

_COMPOUND = (".ome.tif", ".ome.tiff", ".ome.zarr", ".truth.csv", ".geojson.gz")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; at the end it takes the place of `path` in one step.

    Folders on the way are made. If writing fails, what stood at `path` before still stands there.

    Raises
    ------
    OutputError
        If the system refuses: no space, no permission, no such device.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; free space there or choose another folder with -o"
        ) from error
    finally:
        with suppress(OSError):  # where the folder itself is gone or forbidden, nothing was left behind
            part.unlink(missing_ok=True)


def stem(path: Path) -> str:
    """Return a file's name without its suffix, of which ``.ome.tif`` is one: ``a.ome.tif`` is ``a``."""
    ending = next((ending for ending in _COMPOUND if path.name.lower().endswith(ending)), "")
    return path.name[: -len(ending)] or path.name if ending else path.stem
