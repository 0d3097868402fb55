"""``run.json``: on what, by which model, with what settings and versions a result was made, and how long it took."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from wsiscore import __version__
from wsiscore.files import replacing
from wsiscore.pipeline.bottleneck import fractions

__all__ = ["RUN", "Record", "facts_of", "run_of", "sha256_of", "slide_of", "time_of"]

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
    "openvino",
    "onnxruntime",
)

_warnings: ContextVar[list[str] | None] = ContextVar("warnings of the slide", default=None)


class Record:
    """The ``run.json`` of one slide's folder; what an earlier run wrote stands until this one is done.

    What an earlier command recorded for the same slide stays, as far as this one does not do it again. While the record
    is entered it collects the warnings of this slide: those logged in its context, in whatever thread.

    Parameters
    ----------
    folder
        The slide's folder.
    slide
        The slide's file.
    """

    def __init__(self, folder: Path, slide: Path) -> None:
        self.path = folder / RUN
        earlier = _read(self.path) if slide_of(folder) == slide else {}
        self.values: dict[str, Any] = {
            "wsiscore": __version__,
            "research_use_only": True,
            "slide": {"path": str(slide)},
            **{key: _mapping(earlier.get(key)) for key in ("facts", "model", "settings", "stages")},
            "options": {},
            "versions": {"python": sys.version.split()[0], **dict(_versions())},
            "warnings": [],
            "started": _now(),
            "finished": None,
        }
        self._token: Token[list[str] | None] | None = None
        self._began = time.perf_counter()
        self._spent: dict[str, float] = {}  # by this run, as `values["stages"]`
        self._tiles = 0

    def __enter__(self) -> Self:
        if not self.path.exists():  # claims the folder
            self.write()
        _listen()
        self._token = _warnings.set(self.values["warnings"])
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            _warnings.reset(self._token)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds the body takes under `name`."""
        start = time.perf_counter()
        yield
        self._spend({name: time.perf_counter() - start})

    def infer_spent(self, seconds: Mapping[str, float], tiles: int) -> None:
        """Add the parts of inference, and the number of tiles that were computed."""
        self._tiles += tiles
        self._spend({f"infer: {name}": value for name, value in seconds.items()})

    def _spend(self, seconds: Mapping[str, float]) -> None:
        rounded = {name: round(value, 3) for name, value in seconds.items()}
        self._spent.update(rounded)
        self.values["stages"].update(rounded)

    def note(self, key: str, values: Mapping[str, Any]) -> None:
        """Add values under a heading."""
        self.values[key].update(values)

    def drop(self, key: str, names: Iterable[str]) -> None:
        """Forget values under a heading, as far as there are any."""
        for name in names:
            self.values[key].pop(name, None)

    def finish(self) -> Mapping[str, Any]:
        """Complete it with the memory that the process has used at most and the time, write it and return it."""
        self.values["time"] = fractions(self._spent, time.perf_counter() - self._began, self._tiles)
        self.values["process_peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        self.values["finished"] = _now()
        self.write()
        return self.values

    def write(self) -> None:
        """Write it as it stands; OutputError if that cannot be done."""
        with replacing(self.path) as part:
            part.write_text(json.dumps(self.values, indent=2) + "\n", encoding="utf-8")


def run_of(folder: Path) -> dict[str, Any]:
    """Return what the ``run.json`` of a folder says; empty if it has none."""
    return _read(folder / RUN)


def slide_of(folder: Path) -> Path | None:
    """Return the slide whose results a folder holds, or None."""
    path = _mapping(_read(folder / RUN).get("slide")).get("path")
    return Path(path) if isinstance(path, str) and path else None


def sha256_of(folder: Path) -> str:
    """Return the SHA-256 of the slide whose results a folder holds; empty if it is not known."""
    return str(_mapping(_read(folder / RUN).get("slide")).get("sha256") or "")


def facts_of(folder: Path) -> dict[str, str]:
    """Return what a manifest said of the slide whose results a folder holds."""
    return {key: str(value) for key, value in _mapping(_read(folder / RUN).get("facts")).items()}


def time_of(folder: Path) -> dict[str, Any]:
    """Return where the time of the last run on a slide went; empty if its folder does not say."""
    return _mapping(_read(folder / RUN).get("time"))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


class _Collector(logging.Handler):
    """Adds each warning, once, to the list of the slide in whose context it is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        messages = _warnings.get()
        if messages is not None and (message := record.getMessage()) not in messages:
            messages.append(message)


def _listen() -> None:
    logger = logging.getLogger("wsiscore")
    if _COLLECTOR not in logger.handlers:
        logger.addHandler(_COLLECTOR)


_COLLECTOR = _Collector(logging.WARNING)


def _versions() -> Iterator[tuple[str, str]]:
    for library in _LIBRARIES:
        try:
            yield library, version(library)
        except PackageNotFoundError:
            continue


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
