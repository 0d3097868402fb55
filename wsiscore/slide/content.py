"""The content of a slide as one hash, over every file it consists of."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from wsiscore.errors import SlideError

__all__ = ["sha256_of"]


def sha256_of(files: Sequence[Path]) -> str:
    """Return the SHA-256 of a slide's content in hexadecimal.

    Each file is read once, from its beginning to its end, at about 1.5 GB/s where the processor has instructions for
    SHA; what is read after it comes from the system's cache.

    Parameters
    ----------
    files
        As `wsiscore.slide.readers.base.Reader.files`. The hash of a single file is that of ``sha256sum``; that of
        several is over the name of each below the first one's folder, and its own hash.

    Raises
    ------
    SlideError
        If a file cannot be read.
    """
    if len(files) == 1:
        return _of_file(files[0])
    whole = hashlib.sha256()
    for file in files:
        name = file.relative_to(files[0].parent) if file.is_relative_to(files[0].parent) else file
        whole.update(f"{_of_file(file)}  {name}\n".encode("utf-8", "surrogateescape"))
    return whole.hexdigest()


def _of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SlideError(f"{path} cannot be read: {error.strerror or error}") from error
