"""``run.json``: on what, by which model, with what settings and versions a result was made, and how long it took."""

from __future__ import annotations

import hashlib
import json
import logging
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from wsiscore import __version__
from wsiscore.files import replacing

__all__ = ["RUN", "Record", "slide_of"]

RUN = "run.json"
_LIBRARIES = (
    "numpy",
    "scipy",
    "opencv-python-headless",
    "openslide-python",
    "openslide-bin",
    "tifffile",
    "zarr",
    "torch",
)


class Record:
    """The ``run.json`` of one slide's folder; it changes on disk only once a run is done.

    What an earlier command recorded for the same slide stays, as far as this one does not do it again.

    Parameters
    ----------
    folder
        The slide's folder.
    slide
        The slide's file; its SHA-256 is taken in a thread beside the work.
    """

    def __init__(self, folder: Path, slide: Path) -> None:
        self.path = folder / RUN
        earlier = _read(self.path) if slide_of(folder) == slide else {}
        self.values: dict[str, Any] = {
            "wsiscore": __version__,
            "research_use_only": True,
            "slide": {"path": str(slide)},
            "model": earlier.get("model", {}),
            "settings": earlier.get("settings", {}),
            "stages": earlier.get("stages", {}),
            "versions": {"python": sys.version.split()[0], **dict(_versions())},
            "warnings": [],
            "started": _now(),
            "finished": None,
        }
        self._hash: Future[str] | None = None
        self._slide = slide
        self._pool = ThreadPoolExecutor(1, "wsiscore-hash")
        self._listener = _Listener(self.values["warnings"])

    def __enter__(self) -> Self:
        if not self.path.exists():  # claims the folder; what an earlier run finished stands until this one has
            self.write()
        self._hash = self._pool.submit(_sha256, self._slide)
        logging.getLogger("wsiscore").addHandler(self._listener)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("wsiscore").removeHandler(self._listener)
        self._pool.shutdown(cancel_futures=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds the body takes under `name`."""
        start = time.perf_counter()
        yield
        self.values["stages"][name] = round(time.perf_counter() - start, 3)

    def note(self, key: str, values: Mapping[str, Any]) -> None:
        """Add values under a heading."""
        self.values[key].update(values)

    def finish(self) -> Mapping[str, Any]:
        """Complete it with the hash, the memory and the time, write it and return it."""
        if self._hash is not None:
            self.values["slide"]["sha256"] = self._hash.result()
        self.values["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        self.values["finished"] = _now()
        self.write()
        return self.values

    def write(self) -> None:
        """Write it as it stands; OutputError if that cannot be done."""
        with replacing(self.path) as part:
            part.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")


def slide_of(folder: Path) -> Path | None:
    """Return the slide whose results a folder holds, or None."""
    path = _read(folder / RUN).get("slide", {}).get("path")
    return Path(path) if path else None


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


class _Listener(logging.Handler):
    """Collects the warnings of a slide, each once."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        if (message := record.getMessage()) not in self.messages:
            self.messages.append(message)


def _sha256(path: Path) -> str:
    """Return the hash of a file, or of the metadata of an OME-Zarr folder, in hexadecimal."""
    with (path / "zarr.json" if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            continue


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
