"""Files: written whole by one process at a time, safe in spreadsheets; stems; pickles that run no code."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from wsiscore.errors import OutputError

__all__ = [
    "ForbiddenGlobalError",
    "RestrictedUnpickler",
    "folder_name",
    "lock_names",
    "locked",
    "one_line",
    "plain_text",
    "remove_parts",
    "replacing",
    "spreadsheet_text",
    "stem",
    "write_png",
    "writing",
]

_COMPOUND = (".ome.tif", ".ome.tiff", ".ome.zarr", ".truth.csv", ".geojson.gz")
_FORMULA = re.compile("'*[=+\\-@＝＋－＠\t\r\n]")
_NOT_PLAIN = re.compile(r"[^\w .()+-]")
_LOCKS = ".locks"
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
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write `path` into an OutputError that says what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}); choose another folder with -o") from error


@contextmanager
def locked(folder: Path, name: str = "folder") -> Iterator[None]:
    """Hold a lock in a folder, which one process at a time holds, on whatever machine.

    If another holds it, a line in the log says so, and this one waits. The lock ends with the process that holds it,
    however that ends; the file stays.

    Parameters
    ----------
    folder
        Made if it is not there; the lock is a file in ``.locks`` there.
    name
        What is locked: something in the folder, or the folder itself.

    Raises
    ------
    OutputError
        If the folder cannot be made or written.
    """
    try:
        (folder / _LOCKS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCKS / f"{name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            _log.warning("%s: another process works on %s there; waiting for it", folder, name)
            lock.acquire()
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}; choose another folder with -o") from error
    try:
        yield
    finally:
        lock.release()


def lock_names(folder: Path, start: str) -> list[str]:
    """Return the names that begin in a way of what was ever locked in a folder."""
    try:
        names = sorted(path.name.removesuffix(".lock") for path in (folder / _LOCKS).iterdir())
    except OSError:
        return []
    return [name for name in names if name.startswith(start)]


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


def folder_name(name: str) -> str:
    """Return a name as that of a folder: itself, or if it is not plain, what is plain of it with six digits."""
    plain = _NOT_PLAIN.sub("_", name)[:100].strip()
    if name and plain == name and not name.startswith("."):
        return name
    digits = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{plain.lstrip('.') or 'unnamed'}-{digits}"


class ForbiddenGlobalError(pickle.UnpicklingError):
    """A pickle refers to a class or function that is not allowed; the text is its full name."""


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickler for untrusted files: builds only what an allow-list names, and imports nothing.

    Parameters
    ----------
    file
        Binary file.
    allowed
        (module, name) in the pickle -> class or function to use for it. Everything here may be called by the pickle
        with arguments of its choice.

    Raises
    ------
    ForbiddenGlobalError
        From ``load``, if the pickle refers to anything else.
    """

    def __init__(self, file: BinaryIO, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        """Return what `allowed` has for a name; pickle calls this for every class and function."""
        if (module, name) not in self._allowed:
            raise ForbiddenGlobalError(f"{module}.{name}")
        return self._allowed[module, name]


def write_png(path: Path, rgb: npt.NDArray[np.uint8]) -> None:
    """Write a picture as PNG.

    Parameters
    ----------
    path
        The file to write.
    rgb
        (height, width, 3) RGB in 0..255.

    Raises
    ------
    OutputError
        If it cannot be encoded or written.
    """
    import cv2

    done, encoded = cv2.imencode(".png", rgb[..., ::-1])
    if not done:
        raise OutputError(f"{path}: a picture of shape {rgb.shape} could not be encoded as PNG")
    with replacing(path) as part:
        part.write_bytes(encoded.tobytes())


def spreadsheet_text(text: str) -> str:
    """Return a text for a CSV field that no spreadsheet takes for a formula; `plain_text` undoes it.

    What begins with ``= + - @``, their full-width forms, a tab or a line end, also after apostrophes, gets an
    apostrophe before it. Source: OWASP, CSV Injection.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def plain_text(field: str) -> str:
    """Return the text of a CSV field that `spreadsheet_text` wrote."""
    return field[1:] if field.startswith("'") and _FORMULA.match(field) else field
