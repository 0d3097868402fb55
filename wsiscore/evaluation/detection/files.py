"""Files of predicted cells and of true ones, matched by the stems of the images."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from wsiscore.errors import TruthError
from wsiscore.evaluation.detection import masks, points
from wsiscore.evaluation.detection.truth import Kind, TrueCells, required_mpp
from wsiscore.evaluation.tables import shortened
from wsiscore.files import stem

__all__ = ["Annotation", "FoundCells", "find_predicted", "find_truth", "read_found", "read_true_cells", "slide_of"]

_TABLES = ("cells.parquet", "cells.csv")
_RUN = "run.json"
_ANNOTATIONS = (".truth.csv", ".csv", ".json", ".geojson", ".geojson.gz", ".npy")
_PICTURES = (".png", ".tif", ".tiff")  # read only for images without annotations: a folder often holds the images too


@dataclass(frozen=True, slots=True)
class FoundCells:
    """Predicted cells as columns of one length.

    Parameters
    ----------
    xy_um
        (N, 2): x and y in micrometres.
    positive
        (N,): whether each cell is positive.
    positivity
        (N,): positivity of each cell in [0, 1], nan where it is undefined; None where the table has no such column.
    """

    xy_um: npt.NDArray[np.float64]
    positive: npt.NDArray[np.bool_]
    positivity: npt.NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.positive)

    def select(self, which: npt.NDArray[np.bool_]) -> Self:
        """Return the cells where the mask is true."""
        positivity = None if self.positivity is None else self.positivity[which]
        return type(self)(self.xy_um[which], self.positive[which], positivity)


def find_predicted(paths: Iterable[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Find tables of cells that `wsiscore score` wrote.

    Parameters
    ----------
    paths
        Tables, folders of a slide, or folders of such folders.

    Returns
    -------
    tuple
        Tables by the slide's stem; and the folders of a slide that hold a run but no table: slides that failed.

    Raises
    ------
    TruthError
        If a path holds no table, a folder holds two, or two have the same stem.
    """
    tables: dict[str, Path] = {}
    failed: list[Path] = []
    for path in paths:
        found = _tables_at(path)
        if not found:
            within = [folder for folder in sorted(path.glob("*/")) if folder.is_dir()]
            found = [table for folder in within for table in _tables_at(folder)]
            failed += [folder for folder in within if not _tables_at(folder) and (folder / _RUN).is_file()]
        if not found:
            raise TruthError(f"{path} holds no {' or '.join(_TABLES)}; give the output of `wsiscore score`")
        for table in found:
            name = table.absolute().parent.name if table.name in _TABLES else stem(table)
            if name in tables:
                raise TruthError(f"{tables[name]} and {table} are both of {name}; evaluate them one after the other")
            tables[name] = table
    return tables, failed


def _tables_at(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [path / name for name in _TABLES if (path / name).is_file()]
    if len(found) > 1:
        raise TruthError(f"{path} holds both {' and '.join(_TABLES)}; give the one to use")
    return found


def read_found(path: Path) -> FoundCells:
    """Read a table of predicted cells, Parquet or CSV.

    Its columns are ``x_um``, ``y_um``, ``class`` and, for the calibration, ``positivity``; others are not read.

    Raises
    ------
    TruthError
        If it cannot be read, lacks a column, or has a value that is not valid.
    """
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == b"PAR1"
            file.seek(0)
            table = (pyarrow.parquet.read_table if is_parquet else pyarrow.csv.read_csv)(file)
        xy_um = np.column_stack([table[name].to_numpy().astype(np.float64) for name in ("x_um", "y_um")])
        classes = np.asarray(table["class"].to_pylist(), dtype=np.str_)
        positivity = table["positivity"].to_numpy().astype(np.float64) if "positivity" in table.column_names else None
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise TruthError(
            f"{path} is not a table of cells ({error}); wanted the columns x_um, y_um and class"
        ) from error
    others = set(classes.tolist()) - {"positive", "negative"}
    if others or not np.isfinite(xy_um).all():
        what = f"cells of class {', '.join(sorted(others))}" if others else "positions that are not finite"
        raise TruthError(f"{path} has {what}; wanted finite micrometres, and the classes positive and negative")
    if positivity is not None and ((positivity < 0) | (positivity > 1)).any():
        raise TruthError(f"{path} has a positivity outside [0, 1]; wanted the table as `wsiscore score` wrote it")
    return FoundCells(xy_um, np.equal(classes, "positive"), positivity)


def slide_of(table: Path) -> Path | None:
    """Return the slide of a table of cells by the ``run.json`` beside it; None if that does not name one."""
    try:
        run = json.loads((table.parent / _RUN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    slide = run.get("slide") if isinstance(run, dict) else None
    path = slide.get("path") if isinstance(slide, dict) else None
    return Path(path) if isinstance(path, str) else None


def read_true_cells(
    path: Path,
    stems: Sequence[str],
    *,
    mpp: float | None,
    types: Mapping[int, Kind],
    slides: Sequence[Path] = (),
    regions: Sequence[Path] = (),
) -> tuple[dict[str, TrueCells], list[str]]:
    """Read the annotated cells of images.

    Parameters
    ----------
    path
        One file, for one image or with outlines of many; or a folder with a file for each image, named by its stem; or
        a folder of BCData, with ``positive/`` and ``negative/`` in it or one level below. In a folder points and
        outlines take precedence over masks, ``<stem>.truth.csv`` over all.
    stems
        Of the images.
    mpp
        Micrometres per pixel of the annotations; not needed for tables in micrometres.
    types
        Classes of the numbers of a type map; see `masks.from_npy`.
    slides
        Pictures on which the cells were predicted: these files are never read as truth.
    regions
        Files that hold regions: they are not read as truth either.

    Returns
    -------
    tuple
        By stem the cells of the images that have truth; and the annotated images that are not in `stems`.

    Raises
    ------
    TruthError
        If the file of an image cannot be read, there are several, or there is truth for none of the images.
    """
    annotated, unused = find_truth(path, stems, slides=slides, regions=regions)
    return {name: annotation.read(mpp, types) for name, annotation in annotated.items()}, unused


@dataclass(frozen=True, slots=True)
class Annotation:
    """The annotation files of one image, and the image's entry in a file of many images."""

    files: tuple[Path, ...]
    entry: object = None

    def read(self, mpp: float | None, types: Mapping[int, Kind]) -> TrueCells:
        """Return the cells; arguments and errors as for `read_true_cells`."""
        return _read(self, mpp, types)


def find_truth(
    path: Path, stems: Sequence[str], *, slides: Sequence[Path] = (), regions: Sequence[Path] = ()
) -> tuple[dict[str, Annotation], list[str]]:
    """Find the annotations of images, by stem, and the annotated images not in `stems`; as for `read_true_cells`."""
    if not path.exists():
        raise TruthError(f"{path} does not exist; --truth wants a file or a folder of annotations")
    pictures = _resolved(slides)
    if path.resolve() in pictures:
        raise TruthError(f"{path} is the slide itself, not its truth; give --truth a file or folder of annotations")
    left_out = pictures | _resolved(regions)
    annotated = _in_file(path, stems) if path.is_file() else _in_folder(path, left_out)
    truth = {name: annotated[name] for name in stems if name in annotated}
    if not truth:
        found = (
            f"it has truth for {shortened(sorted(annotated))}"
            if annotated
            else "it holds no annotations of a known kind"
        )
        own = [file.name for file in sorted(path.iterdir()) if file.resolve() in pictures] if path.is_dir() else []
        slide = f"; {shortened(own)} is the slide itself" if own else ""
        raise TruthError(f"{path} has truth for none of {shortened(stems)}: {found}{slide}; name the truth by the stem")
    return truth, sorted(set(annotated) - set(stems))


def _resolved(paths: Sequence[Path]) -> set[Path]:
    return {path.resolve() for path in paths}


def _in_file(path: Path, stems: Sequence[str]) -> dict[str, Annotation]:
    if path.suffix.casefold() == ".json" and (images := points.images_in(points.json_of(path))):
        return {name: Annotation((path,), entry) for name, entry in images.items()}
    name = stems[0] if len(stems) == 1 else _stem(path, (*_ANNOTATIONS, *_PICTURES))
    return {name: Annotation((path,))} if name else {}


def _in_folder(folder: Path, left_out: Set[Path]) -> dict[str, Annotation]:
    annotated: dict[str, Annotation] = {}
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.resolve() not in left_out]
    for endings in ((".truth.csv",), _ANNOTATIONS, _PICTURES):
        found: dict[str, list[Path]] = {}
        for file in files:
            if (name := _stem(file, endings)) and name not in annotated:
                found.setdefault(name, []).append(file)
        annotated |= {name: Annotation(tuple(own)) for name, own in found.items()}
    for positive in sorted([*folder.glob("positive/*.h5"), *folder.glob("*/positive/*.h5")]):
        both = (positive, positive.parent.parent / "negative" / positive.name)
        earlier = annotated.get(positive.stem, Annotation(())).files
        annotated[positive.stem] = Annotation((*earlier, *both))
    return annotated


def _stem(file: Path, endings: Sequence[str]) -> str:
    """Return the stem of a file that has one of these endings, else an empty text."""
    return stem(file) if file.name.casefold().endswith(tuple(endings)) else ""


def _read(annotation: Annotation, mpp: float | None, types: Mapping[int, Kind]) -> TrueCells:
    path, *others = annotation.files
    if path.suffix == ".h5" and len(others) == 1:
        return points.from_h5(path, others[0], required_mpp(mpp, path))
    if others:
        names = ", ".join(str(file) for file in annotation.files)
        raise TruthError(
            f"{names} are all of one image; give --truth the one to use or a folder with it alone, and --regions one "
            "that holds regions"
        )
    suffix = path.suffix.casefold()
    if suffix == ".csv":
        return points.from_csv(path, mpp)
    if suffix == ".npy":
        return masks.from_npy(path, required_mpp(mpp, path), types)
    if suffix in _PICTURES:
        return masks.from_picture(path, required_mpp(mpp, path))
    if suffix == ".h5":
        raise TruthError(f"{path} is one half of BCData's truth; give the folder with positive/ and negative/")
    document = annotation.entry or points.json_of(path)
    return points.from_json(document, path.name, required_mpp(mpp, path))
