"""Files: written whole or not at all, by one process at a time, and what a slide's file is called."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import FileLock, Timeout

from wsiscore.errors import OutputError

__all__ = ["locked", "one_line", "remove_parts", "replacing", "stem"]

_COMPOUND = (".ome.tif", ".ome.tiff", ".ome.zarr", ".truth.csv", ".geojson.gz")
_LOCK = ".lock"
_PART = ".part"
_numbers = count()

_log = logging.getLogger("wsiscore")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; at the end it replaces `path` in one step.

    Folders on the way are made. If writing fails, what was at `path` before is still there. A process that is killed
    leaves the temporary file behind, which `remove_parts` removes.

    Raises
    ------
    OutputError
        If the system refuses: no space, no permission, no such device.
    """
    part = path.with_name(f".{path.name[:100]}.{socket.gethostname()}-{os.getpid()}-{next(_numbers)}{_PART}")
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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, ``.lock`` in it, which one process on one machine holds at a time.

    If another holds it, a line in the log says so, and this one waits. The lock ends with the process that holds it,
    however that ends; the file stays.

    Parameters
    ----------
    folder
        Made if it is not there.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.info("%s: another process works there; waiting for it", folder)
            lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder with -o") from error
    try:
        yield
    finally:
        lock.release()


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of `replacing` directly in a folder; only while its lock is held."""
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError):
            part.unlink()


def one_line(text: str) -> str:
    r"""Return a text on one line: tabs and line ends as ``\t`` and ``\n``, bytes that are no text as their escapes."""
    text = text.replace("\t", "\\t").replace("\r", "\\r").replace("\n", "\\n")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def stem(path: Path) -> str:
    """Return a file's name without its suffix, of which ``.ome.tif`` is one: ``a.ome.tif`` is ``a``."""
    ending = next((ending for ending in _COMPOUND if path.name.lower().endswith(ending)), "")
    return path.name[: -len(ending)] or path.name if ending else path.stem
