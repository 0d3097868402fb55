"""The hash of a slide's content, over every file of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from wsiscore.errors import SlideError

__all__ = ["sha256_of", "state_of"]


def sha256_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a slide's content in hexadecimal.

    Each file is read once, at about 1.5 GB/s on processors with SHA instructions; later reads come from the system's
    cache.

    Parameters
    ----------
    files
        As `wsiscore.slide.readers.base.Reader.files`, in any order. The hash of a single file is that of
        ``sha256sum``; that of several files is over the hash of each and its name below their common folder.

    Raises
    ------
    SlideError
        If a file cannot be read.
    """
    if len(files) == 1:
        return _of_file(files[0])
    folder = Path(os.path.commonpath([file.parent for file in files]))
    lines = sorted(f"{_of_file(file)}  {file.relative_to(folder)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def state_of(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """Return what changes when a file is written or replaced: number, size and time; None if it is not there."""
    return [_state(file) for file in files]


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SlideError(f"{path} cannot be read: {error.strerror or error}") from error
