"""Corrected cells: read in every form QuPath writes, matched with those that were found, and counted as edits."""

from __future__ import annotations

import gzip
import json
import math
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import cells_at, whole_roi

from wsiscore.cells.edits import CellClass, MarkedCells, correct
from wsiscore.cells.marked import read_marked
from wsiscore.cells.table import Cells, Edit
from wsiscore.errors import CorrectionError
from wsiscore.report.qupath import write_detections

NONE = cells_at([], [], [])


def grid(n: int) -> Cells:
    """Return n cells 5 µm apart, every third positive, ordered by y, then x."""
    number = np.arange(n)
    cells = cells_at(5.0 + 5 * (number % 20), 5.0 + 5 * (number // 20), np.where(number % 3, 0.2, 0.9))
    return cells.in_rois([whole_roi()])


def marked_as(cells: Cells) -> MarkedCells:
    return MarkedCells(cells.x_um, cells.y_um, cells.positive.astype(np.int64))


def same(one: Cells, other: Cells) -> bool:
    return all(np.array_equal(getattr(one, each.name), getattr(other, each.name), True) for each in fields(Cells))


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(0, 10))
def test_what_was_not_edited_is_the_same_cell(n: int, n_other: int) -> None:
    stored, others = grid(n + n_other).select(np.arange(n)), grid(n + n_other).select(np.arange(n, n + n_other))
    kinds = np.r_[stored.positive.astype(np.int64), np.full(n_other, CellClass.OTHER)]
    whole = stored.with_others(others, sort=False)
    shuffled = np.random.default_rng(n).permutation(len(whole))
    shift = 0.0004  # of the three decimals in a file
    marked = MarkedCells(whole.x_um[shuffled] + shift, whole.y_um[shuffled] - shift, kinds[shuffled])
    cells, rest, edits = correct(stored, others, marked, [whole_roi()])
    assert same(cells, stored)
    assert same(rest, others)
    assert edits.total == 0
    assert (edits.found_positive, edits.found_negative) == (stored.positive.sum(), (~stored.positive).sum())


@settings(max_examples=30)
@given(st.data())
def test_edits_are_counted(data: st.DataObject) -> None:
    stored = grid(60)
    numbers = data.draw(st.permutations(range(60)))
    cut, flip = sorted(data.draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
    deleted, changed, n_new = numbers[:cut], numbers[cut:flip], data.draw(st.integers(0, 9))
    kinds = stored.positive.astype(np.int64)
    kinds[changed] = 1 - kinds[changed]
    kept = np.setdiff1d(np.arange(60), deleted)
    new_x = 7.5 + 5 * np.arange(n_new)  # between the others, 2.5 µm from each
    marked = MarkedCells(
        np.r_[stored.x_um[kept], new_x], np.r_[stored.y_um[kept], np.full(n_new, 5.0)], np.r_[kinds[kept], [1] * n_new]
    )
    cells, _, edits = correct(stored, NONE, marked, [whole_roi()])
    assert (edits.added, edits.deleted, edits.changed) == (n_new, len(deleted), len(changed))
    assert (len(cells), cells.positive.sum()) == (len(marked), marked.kind.sum())
    assert np.isnan(cells.confidence).sum() == np.isnan(cells.dab_od).sum() == n_new
    assert [(cells.edit == kind).sum() for kind in (Edit.ADDED, Edit.CLASS_CHANGED)] == [n_new, len(changed)]
    assert same(cells, cells.sorted())


def test_other_nuclei_do_not_count_and_may_be_made_to() -> None:
    stored, others = grid(20).select(np.arange(18)), grid(20).select(np.arange(18, 20))
    kinds = np.r_[CellClass.OTHER, stored.positive[1:], CellClass.POSITIVE, CellClass.OTHER]
    whole = stored.with_others(others, sort=False)
    cells, rest, edits = correct(stored, others, MarkedCells(whole.x_um, whole.y_um, kinds), [whole_roi()])
    assert (len(cells), len(rest), edits.changed, edits.added, edits.deleted) == (18, 2, 2, 0, 0)
    assert cells.positive.sum() == stored.positive[1:].sum() + 1


def test_new_cells_outside_the_regions_do_not_count(caplog: pytest.LogCaptureFixture) -> None:
    stored = grid(5)
    marked = MarkedCells(np.r_[stored.x_um, 500.0], np.r_[stored.y_um, 500.0], np.r_[stored.positive, True].astype(int))
    cells, _, edits = correct(stored, NONE, marked, [whole_roi()])
    assert (len(cells), edits.total) == (5, 0)
    assert "1 new cells lie outside the regions" in caplog.text


def test_cells_of_another_slide_are_refused() -> None:
    rng = np.random.default_rng(3)
    other = MarkedCells(*rng.uniform(0, 200, (2, 100)), np.zeros(100, np.int64))
    with pytest.raises(CorrectionError, match="of another slide"):
        correct(grid(100), NONE, other, [whole_roi()])
    _, _, edits = correct(grid(100), NONE, other, [whole_roi()], most_new=1.0)
    assert edits.added > 50


# --- files -----------------------------------------------------------------------------------------------------


def feature(geometry: dict[str, Any], name: Any = "Positive", kind: str | None = "detection", **more: Any) -> Any:
    named = {} if name is None else {"classification": name if isinstance(name, dict) else {"name": name}}
    return {"type": "Feature", "geometry": geometry, "properties": {"objectType": kind, **named}, **more}


def point(x: float, y: float) -> dict[str, Any]:
    return {"type": "Point", "coordinates": [x, y]}


def box(x: float, y: float, half: float = 10) -> dict[str, Any]:
    ring = [
        [x - half, y - half],
        [x + half, y - half],
        [x + half, y + half],
        [x - half, y + half],
        [x - half, y - half],
    ]
    return {"type": "Polygon", "coordinates": [ring]}


FORMS = {
    "detections": [feature(point(20, 40)), feature(point(60, 80), "Negative")],
    "points tool": [
        feature({"type": "MultiPoint", "coordinates": [[20, 40]]}, kind="annotation"),
        feature(point(60, 80), "Negative", "annotation"),
    ],
    "outlines": [feature(box(20, 40)), feature(box(60, 80), "Negative", "annotation")],
    "cells": [feature(box(90, 90), kind="cell", nucleusGeometry=box(20, 40)), feature(point(60, 80), "negative")],
    "derived classes": [feature(point(20, 40), "Tumor: Positive"), feature(point(60, 80), {"names": ["Negative"]})],
    "with a region": [
        feature(point(20, 40)), feature(point(60, 80), "Negative"), feature(box(99, 99, 90), "Tumor", "annotation"),
    ],
    "twice": [feature(point(20, 40))] * 2 + [feature(point(60, 80), "Negative")],
    "0.2": [
        {**feature(point(20, 40), kind=None), "id": "PathDetectionObject"}, feature(point(60, 80), "Negative", None),
    ],
}  # fmt: skip


def written(path: Path, features: list[Any], form: str) -> Path:
    document = {"type": "FeatureCollection", "features": features} if form != "list" else features
    data = json.dumps(document).encode()
    if form == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("cells.geojson", data)
    else:
        path.write_bytes(gzip.compress(data) if form == "gz" else data)
    return path


@pytest.mark.parametrize("features", FORMS.values(), ids=FORMS)
def test_every_form_of_qupath_is_read(tmp_path: Path, features: list[Any]) -> None:
    for form in ("collection", "list", "gz", "zip"):
        found = read_marked(written(tmp_path / "c", features, form), 0.5)
        assert [*found.x_um, *found.y_um, *found.kind] == [10, 30, 20, 40, CellClass.POSITIVE, CellClass.NEGATIVE]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    stored, others = grid(30).select(np.arange(27)), grid(30).select(np.arange(27, 30))
    write_detections(tmp_path / "cells.geojson", stored, others, mpp=0.2513)
    found = read_marked(tmp_path / "cells.geojson", 0.2513)
    cells, rest, edits = correct(stored, others, found, [whole_roi()])
    assert edits.total == 0
    assert same(cells, stored)
    assert same(rest, others)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feat', "is not whole JSON"),
        ('{"type": "FeatureCollection", "features": []}', "holds no cell"),
        ('{"cells": 3}', "not GeoJSON"),
        ("[" * 100_000, "cannot be read"),
        (b"\x1f\x8bnot gzip", "cannot be read"),
        (b"PK\x03\x04 half an archive", "cannot be read"),
        ([feature(point(1, 2), None)], "1 without class"),
        ([feature(point(1, 2), "Postive")], "1 of 'Postive'"),
        ([feature(point(1, 2), "Stroma: Positive")], "1 of 'Stroma: Positive'"),
        ([feature(point(1, 2)), feature(point(1, 2), "Negative")], "Positive and Negative"),
        ([feature(point(math.nan, 2))], "object no. 1 is not GeoJSON"),
        ([{"type": "Feature", "geometry": None, "properties": {"classification": "Positive"}}], "object no. 1"),
        ([feature(box(99, 99, 90), "Tumor", "annotation")], "holds no cell"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_correction_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    data = json.dumps(content) if isinstance(content, list) else content
    (tmp_path / "c.geojson").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(CorrectionError, match=words) as caught:
        read_marked(tmp_path / "c.geojson", 0.5)
    assert str(caught.value).startswith(str(tmp_path / "c.geojson"))
    assert len(str(caught.value).splitlines()) == 1
