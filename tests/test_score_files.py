"""score.json, the rows of tables and the tables of cells hold what was counted, and are read again."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from reports import HOSTILE, VIRTUAL, cells_at

from wsiscore.analysis.consensus import OtherModel
from wsiscore.analysis.intervals import ModelError, Sampling
from wsiscore.regions import Roi
from wsiscore.report.json import read_error, read_score, write_score
from wsiscore.report.statistics import HEADER, STATISTICS, Place, error_row, row, score_json
from wsiscore.report.tables import write_cells_table, write_scores_csv
from wsiscore.score import SlideScore, Tally

tallies = st.builds(Tally, st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1000))


@given(tallies, tallies, st.floats(1, 99))
def test_json_and_row_say_what_was_counted(one, other, cutoff):
    score = SlideScore("s", "m", one + other, {"one": one, "other": other}, cutoff)
    written = json.loads(json.dumps(score_json(score), allow_nan=False))
    assert set(HEADER) <= set(written)
    assert (written["positive"], written["negative"], written["call"]) == (
        score.total.n_positive,
        score.total.n_negative,
        score.call,
    )
    assert (written["ki67_index"] is None) == (score.total.n == 0)
    assert sum(roi["positive"] for roi in written["by_roi"].values()) == written["positive"]
    fields = dict(zip(HEADER, row(score), strict=True))
    for key in HEADER:
        if written[key] is None:
            assert fields[key] == "nan"
        elif isinstance(written[key], str):
            assert fields[key] == written[key]
        else:
            assert float(fields[key]) == pytest.approx(written[key], abs=0.0501 if "area" not in key else 0.000501)


def test_no_cells_has_no_numbers():
    score = SlideScore("s", "m", Tally(0, 0, 0.5))
    assert row(score)[4:] == [
        "nan",
        "nan",
        "nan",
        "0.500",
        "no cells",
        "no cells were found in the regions",
        "",
        "0",
        *["nan"] * 7,
        *[""] * 3,
        *["0", "", ""],
        *["", "nan", "nan"],
    ]
    assert [score_json(score)[key] for key in ("ki67_index", "low95", "high95")] == [None] * 3
    assert error_row("s", "m", "no\nmpp")[2:] == ["nan"] * 6 + [
        "error: no\\nmpp",
        "",
        "",
        *["nan"] * 8,
        "",
        "",
        "",
        "nan",
        "",
        "",
        *["", "nan", "nan"],
    ]


@given(st.text("ab \t\r\n\\ü\udce9"), st.text("m\t"))
def test_a_row_is_one_line_whatever_the_names(slide, model):
    for fields in (row(SlideScore(slide, model, Tally())), error_row(slide, model, slide)):
        line = "\t".join(fields)
        assert len(fields) == len(HEADER)
        assert line.count("\t") == len(HEADER) - 1
        assert not set(line) & {"\r", "\n"}
        line.encode("utf-8")


def test_scores_csv_reads_back(tmp_path):
    rows = [row(SlideScore('a,"b"', "m", Tally(1, 2, 3.0))), error_row("\udce9", "m", "x")]
    write_scores_csv(tmp_path / "scores.csv", rows)
    read = list(csv.reader(io.StringIO((tmp_path / "scores.csv").read_text(encoding="utf-8"))))
    assert read == [list(HEADER), *rows]


def test_score_file_is_the_score(tmp_path):
    score = SlideScore(HOSTILE, "m", Tally(3, 1, 0.1), {"ä": Tally(3, 1, 0.1)})
    write_score(tmp_path / "score.json", score)
    assert json.loads((tmp_path / "score.json").read_text(encoding="ascii")) == score_json(score)


def test_the_numbers_of_a_virtual_stain_say_so():
    score = SlideScore("s", "test", Tally(3, 1, 0.1), virtual=VIRTUAL)
    assert row(score)[HEADER.index("model")] == "test on virtual pix<2>pix"
    assert score_json(score)["model"] == "test"
    assert score_json(score)["virtual"] == {
        "model": "pix<2>pix", "version": "3", "weights_sha256": "ab" * 32, "slide": "/slides/he.svs"
    }  # fmt: skip
    assert score_json(dataclasses.replace(score, virtual=None))["virtual"] is None


@pytest.mark.parametrize("rows", [2**20, 1], ids=["together", "one by one"])
def test_cells_tables_hold_every_column(tmp_path, monkeypatch, rows):
    monkeypatch.setattr("wsiscore.report.tables._ROWS", rows)
    cells = dataclasses.replace(cells_at([1.25, 2], [3, 4.5], [0.5, 0.4999], [0.3, math.nan]), roi=np.array([1, 0]))
    rois = [Roi("a,b", shapely.box(0, 0, 9, 9)), Roi("ü", shapely.box(0, 0, 9, 9))]
    for name, read in (("c.parquet", pyarrow.parquet.read_table), ("c.csv", pyarrow.csv.read_csv)):
        write_cells_table(tmp_path / name, cells, rois)
        table = read(tmp_path / name).to_pydict()
        assert list(table) == ["x_um", "y_um", "class", "confidence", "positivity", "dab_od", "roi", "kind"] + [
            "geometry"
        ] * name.endswith("parquet")
        assert table["x_um"] == [1.25, 2]
        assert table["class"] == ["positive", "negative"]
        assert table["roi"] == ["ü", "a,b"]
        assert table["dab_od"][0] == 0.3
        write_cells_table(tmp_path / name, cells.select(np.zeros(2, bool)), rois)
        assert read(tmp_path / name).num_rows == 0
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        write_cells_table(tmp_path / "c.txt", cells, rois)


def test_names_are_no_formulas_in_a_spreadsheet(tmp_path):
    formula = "=cmd|' /C calc'!A0"
    rows = [row(SlideScore(formula, "-m", Tally(1, 2, 3.0))), error_row("+s", "@m", "\t=1")]
    write_scores_csv(tmp_path / "scores.csv", rows)
    _, scored, failed = csv.reader((tmp_path / "scores.csv").read_text(encoding="utf-8").splitlines())
    assert scored == [f"'{formula}", "'-m", *rows[0][2:]]
    assert failed == [
        "'+s",
        "'@m",
        *["nan"] * 6,
        "error: \\t=1",
        "",
        "",
        *["nan"] * 8,
        "",
        "",
        "",
        "nan",
        "",
        "",
        "",
        "nan",
        "nan",
    ]
    write_cells_table(tmp_path / "cells.csv", cells_at([-1], [-2], [0.5]), [Roi(formula, shapely.box(0, 0, 9, 9))])
    (cell,) = csv.DictReader((tmp_path / "cells.csv").read_text(encoding="utf-8").splitlines())
    assert (cell["roi"], float(cell["x_um"]), float(cell["y_um"])) == (f"'{formula}", -1, -2)
    write_cells_table(tmp_path / "c.parquet", cells_at([-1], [-2], [0.5]), [Roi(formula, shapely.box(0, 0, 9, 9))])
    assert pyarrow.parquet.read_table(tmp_path / "c.parquet").to_pydict()["roi"] == [formula]


# ---- the table of statistics


def test_a_name_is_unique_in_each_place():
    for place in Place:
        names = [each.name for each in STATISTICS if place in each.places]
        assert len(names) == len(set(names)), place


def test_columns_stay_in_their_order():
    known = ("slide", "model", "positive", "negative", "ki67_index", "low95", "high95", "area_mm2", "call")
    assert HEADER[: len(known)] == known


# ---- reading score.json


@given(
    st.text("ab=\t\udce9 ü"),
    st.dictionaries(st.text("ab ü"), tallies, max_size=3),
    st.floats(1, 99),
    st.sampled_from([None, VIRTUAL]),
)
def test_a_score_reads_back(tmp_path_factory, name, by_roi, cutoff, virtual):
    path = tmp_path_factory.mktemp("score") / "score.json"
    score = SlideScore(
        name,
        "m",
        sum(by_roi.values(), Tally()),
        by_roi,
        cutoff,
        virtual,
        ("pale", "pen"),
        Sampling(500, 12, 3.5),
        ModelError(4.5, 0.9, 10),
        others=(OtherModel("b", 4, 9, 8, (3, 1, 0, 4)), OtherModel("c", 0, 0, 8, (0, 0, 0, 0))),
    )
    write_score(path, score)
    assert read_score(path) == score


GOOD = {"slide": "s", "model": "m", "positive": 1, "negative": 2, "area_mm2": 0.5, "cutoff": 20.0, "by_roi": {}}


def test_a_score_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / "score.json").write_text(json.dumps(GOOD))
    assert read_score(tmp_path / "score.json") == SlideScore("s", "m", Tally(1, 2, 0.5), {}, 20.0)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "[]", "3", "{}", '"s"', "\x00", "[" * 100_000, '{"by_roi":' * 100_000, "9" * 10_000,
        *(json.dumps({key: value for key, value in GOOD.items() if key != left_out}) for left_out in GOOD),
        *(
            json.dumps(GOOD | changed)
            for changed in (
                {"slide": 3}, {"model": None}, {"by_roi": []}, {"by_roi": {"a": 1}}, {"by_roi": {"a": []}},
                {"by_roi": {"a": {}}}, {"positive": -1}, {"positive": 0.5}, {"positive": "1"}, {"negative": 10**400},
                {"area_mm2": math.nan}, {"area_mm2": -1}, {"area_mm2": []}, {"area_mm2": 10**400}, {"cutoff": 0},
                {"cutoff": "high"}, {"cutoff": None}, {"virtual": 3}, {"virtual": {"model": "m"}},
                {"virtual": {"model": 1, "slide": "s"}}, {"virtual": {"other": "m"}},
                {"virtual": {"model": "m", "slide": "s", "weights_sha256": 3}}, {"virtual": [1]},
                {"flags": ["pale"]}, {"flags": None}, {"issue": 3}, {"issue": {"author": "A"}},
                {"issue": {"author": "A", "date": "", "edits": {"added": 1}}},
                {"excluded": "x"}, {"excluded": 0.5}, {"excluded": [1]},
            )
        ),
    ],
    ids=lambda text: text[:60],
)  # fmt: skip
def test_a_foreign_score_is_none(tmp_path, text):
    (tmp_path / "score.json").write_text(text)
    assert read_score(tmp_path / "score.json") is None


@pytest.mark.parametrize("text", ["", "[]", '"s"', "[" * 100_000, '{"slide": "s", "model": "m", "error": ""}'])
def test_a_foreign_error_is_none(tmp_path, text):
    (tmp_path / "error.json").write_text(text)
    assert read_error(tmp_path / "error.json") is None


def test_what_is_no_file_or_too_large_is_no_score(tmp_path):
    assert read_score(tmp_path / "score.json") is None
    assert read_score(tmp_path) is None
    with (tmp_path / "score.json").open("wb") as file:
        file.truncate(2**40)
    assert read_score(tmp_path / "score.json") is None
