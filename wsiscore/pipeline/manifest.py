"""Manifests: a table of slides with what is known of each, for ``wsiscore score --manifest``."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from wsiscore.errors import ManifestError
from wsiscore.files import stem
from wsiscore.pipeline.options import ScoreOptions, SlideFacts

__all__ = ["COLUMNS", "read_manifest"]

COLUMNS = ("path", "case", "name", "mpp", "roi", "roi_class", "specimen", "clone", "platform")
"""Columns that a manifest may have; ``path`` must be there."""

_MOST_BYTES = 64 * 2**20
_LONGEST_NAME = 150  # bytes
_DELIMITERS = ",;\t"


def read_manifest(path: Path, options: ScoreOptions) -> list[tuple[Path, ScoreOptions]]:
    """Return the slides of a manifest, each with its own options.

    Parameters
    ----------
    path
        Comma-, semicolon- or tab-separated text in UTF-8 with a header. Relative paths in it are relative to the
        folder of the manifest. ``name`` becomes the name of the slide's folder. Several classes in ``roi_class`` are
        separated by ``|``. Lines without any field are skipped.
    options
        What applies where a field is empty.

    Returns
    -------
    list of (Path, ScoreOptions)
        In the order of the lines.

    Raises
    ------
    ManifestError
        If the file cannot be read, has an unknown column or no ``path``, or a field cannot be used.
    """
    lines = _lines(path)
    slides = [_slide(path, number, fields, options) for number, fields in lines]
    if not slides:
        raise ManifestError(f"{path} lists no slide; wanted a header and a line a slide")
    named: dict[str, tuple[int, str]] = {}
    for (number, _), (slide, own) in zip(lines, slides, strict=True):
        if own.name:
            key, real = own.name.casefold(), os.path.realpath(slide)
            line, other = named.setdefault(key, (number, real))
            if other != real:
                raise ManifestError(f"{path}, line {number}: the name {own.name!r} is that of line {line} too")
    return slides


def _lines(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the number of each line, counted from 1, and its fields by column."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ManifestError(f"{path} holds more than {_MOST_BYTES >> 20} MiB; wanted a table with a line a slide")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}); save it as CSV UTF-8"
        ) from error
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror or error}") from error
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().casefold() for name in next(reader, [])]
        _check_header(path, header)
        found = []
        for fields in reader:
            if len(fields) > len(header):
                raise ManifestError(
                    f"{path}, line {reader.line_num}: {len(fields)} fields, wanted {len(header)} as in the header"
                )
            if any(field.strip() for field in fields):
                row = dict(zip(header, (field.strip() for field in fields), strict=False))
                found.append((reader.line_num, row))
    except csv.Error as error:
        raise ManifestError(f"{path}, line {reader.line_num}: {error}; save it as CSV again") from error
    return found


def _check_header(path: Path, header: list[str]) -> None:
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ManifestError(f"{path} has an unknown column {unknown[0]!r}; wanted some of {', '.join(COLUMNS)}")
    if "path" not in header or len(set(header)) < len(header):
        fault = "has no column 'path'" if "path" not in header else "has a column twice"
        raise ManifestError(f"{path} {fault}; wanted 'path' and, once each, some of {', '.join(COLUMNS[1:])}")


def _slide(path: Path, number: int, fields: Mapping[str, str], options: ScoreOptions) -> tuple[Path, ScoreOptions]:
    where = f"{path}, line {number}"
    if not fields.get("path"):
        raise ManifestError(f"{where}: the path of the slide is missing")
    name, classes = fields.get("name", ""), fields.get("roi_class", "")
    folder = path.absolute().parent
    facts = SlideFacts(**{key: fields.get(key, "") for key in ("case", "specimen", "clone", "platform")})
    own = replace(
        options,
        name=_name(where, name),
        mpp=_mpp(where, fields["mpp"]) if fields.get("mpp") else options.mpp,
        roi=folder / fields["roi"] if fields.get("roi") else options.roi,
        roi_classes=tuple(part.strip() for part in classes.split("|")) if classes else options.roi_classes,
        facts=facts,
    )
    return folder / fields["path"], own


def _name(where: str, name: str) -> str:
    if not name:
        return ""
    printable = name.isprintable() and not set(name) & set("/\\")
    if not printable or name.startswith(".") or len(name.encode()) > _LONGEST_NAME or not stem(Path(name)):
        raise ManifestError(
            f"{where}: {name!r} cannot name a folder; wanted at most {_LONGEST_NAME} bytes, no / or \\, no dot first"
        )
    return name


def _mpp(where: str, text: str) -> float:
    try:
        mpp = float(text.replace(",", "."))
    except ValueError:
        mpp = math.nan
    if not (math.isfinite(mpp) and mpp > 0):
        raise ManifestError(f"{where}: mpp is {text!r}, wanted a positive number of µm/px")
    return mpp
