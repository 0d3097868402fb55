"""One slide on its way: what was given, the slide, its folder of results and its record."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wsiscore.errors import MosaicError, OutputError, SlideError
from wsiscore.files import lock_names, locked, remove_parts, replacing, stem
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.options import ScoreOptions, SlideOptions, chosen_json
from wsiscore.pipeline.provenance import RUN, Record, sha256_of, slide_of
from wsiscore.report.writers import CASES, COHORT_WRITERS
from wsiscore.slide.readers.omezarr import is_virtual
from wsiscore.slide.slide import Slide
from wsiscore.threads import set_threads
from wsiscore.tiles import TileList

__all__ = [
    "MOSAIC",
    "OUT",
    "RESERVED",
    "TILES",
    "Job",
    "claim",
    "given_slide",
    "open_job",
    "out_of",
    "part_lock",
    "same_names",
    "stem_of",
]

_log = logging.getLogger("wsiscore")

OUT = Path("wsiscore-out")
TILES = "tiles.json"
MOSAIC = "mosaic.ome.zarr"

RESERVED = {CASES, *(writer.name for writer in COHORT_WRITERS)}
"""Names in a folder of results that are no slide's."""
_LONGEST_NAME = 200  # bytes of a folder's name; most file systems take 255
_SET_BY_TILES = {
    "roi": "--roi",
    "roi_classes": "--roi-class",
    "exclude_classes": "--exclude-class",
    "tile_px": "--size",
}
_SET_BY_MOSAIC = {
    "roi_classes": "--roi-class",
    "exclude_classes": "--exclude-class",
    "tile_px": "--size",
    "device": "--device",
    "batch_size": "--batch",
    "maps": "--maps",
    "norm": "--norm",
    "keep": "--keep",
}


@dataclass(slots=True)
class Job:
    """One slide on its way.

    Parameters
    ----------
    slide
        Open.
    folder
        Of its results.
    record
        Its ``run.json``.
    tiles, mosaic
        The tile list or the mosaic that was given instead of the slide, if one was; a mosaic has its tile list.
    computed
        Tiles of which it has computed the maps.
    """

    slide: Slide
    folder: Path
    record: Record
    tiles: TileList | None = None
    mosaic: Mosaic | None = None
    computed: int = 0


@contextmanager
def open_job(path: Path, options: SlideOptions) -> Iterator[Job]:
    """Open a slide, a tile list or a mosaic, claim the slide's folder, and keep its record.

    Raises
    ------
    WsiscoreError
        If it cannot be opened, an option does not apply to it, or the folder belongs to something else.
    """
    set_threads(options.threads)
    tiles, mosaic, source, mpp = None, None, path, options.mpp
    if path.suffix == ".json" and path.is_file():
        tiles = TileList.read(path)
        _refuse(options, _SET_BY_TILES, f"{path} has its regions and its tile size already", "`wsiscore tile`")
    elif (path / "done").is_dir() and not is_virtual(path):
        mosaic = Mosaic.open(path)
        tiles = mosaic.tiles
        set_by = _SET_BY_MOSAIC if isinstance(options, ScoreOptions) else _SET_BY_TILES
        if isinstance(options, ScoreOptions) and options.roi:
            set_by = {key: flag for key, flag in set_by.items() if not key.endswith("_classes")}
        _refuse(options, set_by, f"{path} holds maps that are computed already", "the slide itself")
    if tiles is not None:
        source, mpp = options.slide or tiles.slide, tiles.slide_mpp
        if options.mpp not in (None, mpp):
            raise MosaicError(f"{path} was laid with the slide at {mpp} µm/px; to use --mpp, start from the slide")
        if not source.exists():
            raise SlideError(f"{path} is of the slide {source}, which is not there; say where it is with --slide")
    elif options.slide is not None:
        raise MosaicError(f"{path} is a slide; --slide says where the slide of a tile list or mosaic is")
    with Slide(source, mpp) as slide:
        folder = claim(path, options, source.absolute(), lambda: slide.sha256)
        with locked(folder.parent, folder.name):
            _wait_for_parts(folder)
            remove_parts(folder)
            with Record(folder, source.absolute()) as record:
                record.note("slide", _about(slide))
                record.note("facts", {key: value for key, value in asdict(options.facts).items() if value})
                record.note("options", chosen_json(options))
                if mosaic is not None and mosaic.path.parent != folder.absolute():
                    record.note("options", {"mosaic": os.path.relpath(mosaic.path, folder)})
                yield Job(slide, folder, record, tiles, mosaic)
                stages = record.finish()["stages"]
                _log.info("%s: %s", folder, ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items()))


def part_lock(folder: Path, number: int) -> tuple[Path, str]:
    """Return the folder and the name of the lock that the worker of a part of a slide holds."""
    return folder.parent, f"{folder.name}.part-{number}"


def _wait_for_parts(folder: Path) -> None:
    """Wait until the workers that compute parts of a slide, perhaps for a run that was killed, have ended."""
    for lock in lock_names(folder.parent, f"{folder.name}.part-"):
        with locked(folder.parent, lock):
            pass


def out_of(path: Path, options: SlideOptions) -> Path:
    """Return the folder of the results: the one asked for, or where a given tile list or mosaic lies, or `OUT`."""
    return options.out or (_folder_of(path).parent if path.name in (TILES, MOSAIC) else OUT)


def stem_of(path: Path) -> str:
    """Return what a slide is called: its file's stem; of a tile list or mosaic, its folder."""
    if path.name == MOSAIC:
        return _folder_of(path).name + ("-virtual" if is_virtual(path) else "")
    return _folder_of(path).name if path.name == TILES else stem(path)


def _folder_of(path: Path) -> Path:
    """Return the folder that a file or folder lies in, with its name, also if that is the working directory."""
    return path.parent if path.parent.name not in ("", "..") else Path(os.path.abspath(path)).parent  # noqa: PTH100


def given_slide(path: Path) -> str:
    """Return the real path of the slide that a slide, a tile list or a mosaic is of."""
    slide = slide_of(path.parent) if path.name in (TILES, MOSAIC) and not is_virtual(path) else None
    try:
        return os.path.realpath(slide or path)
    except ValueError:  # a NUL in the name, which opening it refuses
        return str(path)


def same_names(paths: Iterable[Path], options: SlideOptions) -> set[Path]:
    """Return the paths whose stem is that of another slide among them, of which the results go to the same folder."""
    slides: dict[tuple[Path, str], set[str]] = {}
    keys = {path: (out_of(path, options), (options.name or stem_of(path)).casefold()) for path in paths}
    for path, key in keys.items():
        slides.setdefault(key, set()).add(given_slide(path))
    return {path for path, key in keys.items() if len(slides[key]) > 1}


def _refuse(options: SlideOptions, flags: dict[str, str], why: str, instead: str) -> None:
    """Raise a MosaicError if an option was chosen that what was given has decided already."""
    own = {each.name: each for each in fields(options) if each.name in flags}
    chosen = [flags[name] for name, each in own.items() if getattr(options, name) != each.default]
    if chosen:
        raise MosaicError(f"{why}; leave out {' and '.join(chosen)}, or give it to {instead}")


def claim(
    path: Path, options: SlideOptions, slide: Path | None = None, sha256: Callable[[], str] | None = None
) -> Path:
    """Make and return the folder of a slide's results, ``OUT/<name>`` or ``OUT/<stem>``.

    Six digits of the hash of its path are added if another slide has that, here or in this run, or a file of the cohort
    (on some disks in whatever case), or the name is too long. The folder is claimed by the record in it; one that a
    killed process left without is taken.

    Parameters
    ----------
    path
        What was given: the slide, or a tile list or mosaic of it.
    options
        Of which `out`, `name` and `distinct` count.
    slide
        The slide, if it is not `path` itself or the one whose folder that is in.
    sha256
        Returns the hash of its content, by which it is recognised after it was moved.

    Raises
    ------
    OutputError
        If the folder cannot be made.
    """
    out, name = out_of(path, options), options.name or stem_of(path)
    slide = slide or (slide_of(path.parent) if path.name in (TILES, MOSAIC) else None) or path.absolute()
    digits = hashlib.sha256(os.fsencode(slide)).hexdigest()[:6]
    short = os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])
    folders = [out / name, out / f"{short}-{digits}"]
    if short != name or name.lower() in RESERVED or (options.distinct and slide_of(folders[0]) != slide):
        del folders[0]
    with locked(out):
        for folder in folders:
            try:
                folder.mkdir(exist_ok=True)
                held = {entry.name for entry in folder.iterdir()}
            except OSError as error:
                if isinstance(error, FileExistsError | NotADirectoryError):
                    continue
                raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder with -o") from error
            if slide_of(folder) == slide or (sha256 and _was_moved(folder, sha256)):
                return folder
            if not any(name for name in held if not name.startswith(".")):
                remove_parts(folder)
                with replacing(folder / RUN) as part:
                    part.write_text(json.dumps({"slide": {"path": str(slide)}}) + "\n", encoding="utf-8")
                return folder
    raise OutputError(f"{folder} holds something else; move it away or choose another folder with -o")


def _was_moved(folder: Path, sha256: Callable[[], str]) -> bool:
    """Return whether a folder holds the results of the slide with this hash, from where it is no more."""
    slide, known = slide_of(folder), sha256_of(folder)
    return slide is not None and bool(known) and not slide.exists() and known == sha256()


def _about(slide: Slide) -> dict[str, Any]:
    return {
        "format": slide.format,
        "mpp": slide.mpp,
        "mpp_source": slide.properties["mpp_source"],
        "width_px": slide.width_px,
        "height_px": slide.height_px,
        **({"virtual": asdict(slide.virtual)} if slide.virtual else {}),
    }
