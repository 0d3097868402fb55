"""What belongs together: the cells predicted on images, and the truth of the same images, by their stems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection import masks, points
from wsiscore.evaluation.detection.truth import Kind, TrueCells
from wsiscore.evaluation.tables import few

__all__ = ["FoundCells", "find_predicted", "read_found", "read_truth"]

_TABLES = ("cells.parquet", "cells.csv")
_DRAWN = (".truth.csv", ".csv", ".json", ".geojson", ".geojson.gz", ".npy")
_PICTURES = (".png", ".tif", ".tiff")  # taken only where nothing is drawn: a folder often holds the images too


@dataclass(frozen=True, slots=True)
class FoundCells:
    """Predicted cells as columns of one length.

    Parameters
    ----------
    xy_um
        (N, 2): x and y in micrometres.
    positive
        (N,): the class of each.
    """

    xy_um: npt.NDArray[np.float64]
    positive: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.positive)


def find_predicted(paths: Iterable[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Find the tables of cells that `wsiscore score` wrote.

    Parameters
    ----------
    paths
        Tables, folders of a slide, or folders of such folders.

    Returns
    -------
    tuple
        Each slide's stem and table; and folders in those given that hold a run but no table: slides that failed.

    Raises
    ------
    TruthError
        If a path holds no table, a folder two, or two have one stem.
    """
    tables: dict[str, Path] = {}
    failed: list[Path] = []
    for path in paths:
        found = _tables_at(path)
        if not found:
            within = [folder for folder in sorted(path.glob("*/")) if folder.is_dir()]
            found = [table for folder in within for table in _tables_at(folder)]
            failed += [folder for folder in within if not _tables_at(folder) and (folder / "run.json").is_file()]
        if not found:
            raise TruthError(f"{path} holds no {' or '.join(_TABLES)}; give what `wsiscore score` wrote")
        for table in found:
            stem = table.absolute().parent.name if table.name in _TABLES else table.stem
            if stem in tables:
                raise TruthError(f"{tables[stem]} and {table} are both of {stem}; evaluate them one after the other")
            tables[stem] = table
    return tables, failed


def _tables_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [path / name for name in _TABLES if (path / name).is_file()]
    if len(found) > 1:
        raise TruthError(f"{path} holds both {' and '.join(_TABLES)}; give the one that counts")
    return found


def read_found(path: Path) -> FoundCells:
    """Read a table of predicted cells, Parquet or comma-separated, with the columns ``x_um``, ``y_um``, ``class``.

    Raises
    ------
    TruthError
        If it cannot be read, lacks a column, or a value is not what its column says.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
        read = pyarrow.parquet.read_table if is_parquet else pyarrow.csv.read_csv
        table = read(path)
        xy_um = np.column_stack([table[name].to_numpy().astype(np.float64) for name in ("x_um", "y_um")])
        classes = np.asarray(table["class"].to_pylist(), dtype=np.str_)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise TruthError(f"{path} is no table of cells ({error}); wanted the columns x_um, y_um and class") from error
    others = set(classes.tolist()) - {"positive", "negative"}
    if others or not np.isfinite(xy_um).all():
        what = f"cells of class {', '.join(sorted(others))}" if others else "cells at no place"
        raise TruthError(f"{path} has {what}; wanted finite micrometres, and the classes positive and negative")
    return FoundCells(xy_um, np.equal(classes, "positive"))


def read_truth(
    path: Path, stems: Sequence[str], *, mpp: float | None, types: Mapping[int, Kind]
) -> tuple[dict[str, TrueCells], list[str]]:
    """Read the truth of images.

    Parameters
    ----------
    path
        One file, for one image or with outlines of many; or a folder with a file an image, named by its stem; or a
        folder of BCData, with ``positive/`` and ``negative/`` in it or one below. Drawn cells win over masks,
        ``<stem>.truth.csv`` over all.
    stems
        Of the images.
    mpp
        Micrometres per pixel of what is annotated; only tables in micrometres need none.
    types
        What the numbers of a type map mean; see `masks.from_npy`.

    Returns
    -------
    tuple
        By stem the cells of images that have truth; and the annotated images that are not among `stems`.

    Raises
    ------
    TruthError
        If the file of an image cannot be read, there are several, or there is truth for none of the images.
    """
    if not path.exists():
        raise TruthError(f"{path} is not there; --truth wants a file or a folder of annotations")
    annotated = _in_file(path, stems) if path.is_file() else _in_folder(path)
    truth = {stem: _read(annotated[stem], mpp, types) for stem in stems if stem in annotated}
    if not truth:
        raise TruthError(
            f"{path} has truth for none of {few(stems)}; "
            + (f"it has it for {few(sorted(annotated))}" if annotated else "it holds no annotations that can be read")
        )
    return truth, sorted(set(annotated) - set(stems))


@dataclass(frozen=True, slots=True)
class _Annotation:
    """Where the truth of one image is: its files, and of a file with many images the entry."""

    files: tuple[Path, ...]
    entry: object = None


def _in_file(path: Path, stems: Sequence[str]) -> dict[str, _Annotation]:
    if path.suffix.casefold() == ".json" and (images := points.images_in(points.json_of(path))):
        return {stem: _Annotation((path,), entry) for stem, entry in images.items()}
    stem = stems[0] if len(stems) == 1 else _stem(path, (*_DRAWN, *_PICTURES))
    return {stem: _Annotation((path,))} if stem else {}


def _in_folder(folder: Path) -> dict[str, _Annotation]:
    annotated: dict[str, _Annotation] = {}
    for endings in ((".truth.csv",), _DRAWN, _PICTURES):
        found: dict[str, list[Path]] = {}
        for file in sorted(folder.iterdir()):
            if file.is_file() and (stem := _stem(file, endings)) and stem not in annotated:
                found.setdefault(stem, []).append(file)
        annotated |= {stem: _Annotation(tuple(files)) for stem, files in found.items()}
    for positive in sorted([*folder.glob("positive/*.h5"), *folder.glob("*/positive/*.h5")]):
        both = (positive, positive.parent.parent / "negative" / positive.name)
        earlier = annotated.get(positive.stem, _Annotation(())).files
        annotated[positive.stem] = _Annotation((*earlier, *both))
    return annotated


def _stem(file: Path, endings: Sequence[str]) -> str:
    name = file.name.casefold()
    return next((file.name[: -len(end)] for end in endings if name.endswith(end)), "")


def _read(annotation: _Annotation, mpp: float | None, types: Mapping[int, Kind]) -> TrueCells:
    path, *others = annotation.files
    if path.suffix == ".h5" and len(others) == 1:
        return points.from_h5(path, others[0], _needed(mpp, path))
    if others:
        names = ", ".join(str(file) for file in annotation.files)
        raise TruthError(f"{names} are all of one image; give --truth the one that counts, or a folder with it alone")
    suffix = path.suffix.casefold()
    if suffix == ".csv":
        return points.from_csv(path)
    if suffix == ".npy":
        return masks.from_npy(path, _needed(mpp, path), types)
    if suffix in _PICTURES:
        return masks.from_picture(path, _needed(mpp, path))
    if suffix == ".h5":
        raise TruthError(f"{path} is one half of BCData's truth; give the folder with positive/ and negative/")
    document = annotation.entry or points.json_of(path)
    return points.from_json(document, path.name, _needed(mpp, path))


def _needed(mpp: float | None, path: Path) -> float:
    if mpp is None:
        raise TruthError(f"{path} counts in pixels; say with --mpp how many micrometres one is")
    return mpp
