"""The evaluation of cells from the tables of `wsiscore score` to the command's files."""

import csv
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from annotated import NEG, ONE, OUT, POS, TWO, cells, write_found
from click.testing import CliRunner
from hypothesis import given

from wsiscore.cli import main
from wsiscore.errors import OutputError, TruthError, WsiscoreError
from wsiscore.evaluation import evaluate_cells
from wsiscore.evaluation.detection.files import FoundCells, find_predicted, read_found


@given(found=cells)
def test_cells_as_score_writes_them_are_read_back(found, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    for name in ("cells.parquet", "cells.csv"):
        back = read_found(write_found(folder / name, found))
        assert np.allclose(back.xy_um, found.xy_um)
        assert (back.positive == found.positive).all()


def test_tables_are_found_by_folder_and_failed_slides_are_listed(tmp_path):
    a = write_found(tmp_path / "out" / "a" / "cells.parquet", ONE[0])
    b = write_found(tmp_path / "out" / "b.1" / "cells.csv", TWO[0])
    (tmp_path / "out" / "failed").mkdir()
    (tmp_path / "out" / "failed" / "run.json").write_text("{}")
    (tmp_path / "out" / "notes").mkdir()
    assert find_predicted([tmp_path / "out"]) == ({"a": a, "b.1": b}, [tmp_path / "out" / "failed"])
    assert find_predicted([a.parent, b])[0] == {"a": a, "b.1": b}
    with pytest.raises(TruthError, match="both of a"):
        find_predicted([a, a.parent])
    write_found(a.with_name("cells.csv"), ONE[0])
    with pytest.raises(TruthError, match="holds both"):
        find_predicted([tmp_path / "out"])
    with pytest.raises(TruthError, match=r"holds no cells\.parquet"):
        find_predicted([tmp_path / "out" / "notes"])


@pytest.fixture
def run(tmp_path):
    """Write the two images on paper, one without truth, one that failed, and the truth in pixels of 0.5 µm."""
    out = tmp_path / "wsiscore-out"
    for name, found in (("one", ONE[0]), ("two", TWO[0]), ("alone", ONE[0])):
        write_found(out / name / "cells.parquet", found)
    (out / "broken").mkdir()
    (out / "broken" / "run.json").write_text("{}")
    (tmp_path / "truth").mkdir()
    ids = {POS: 1, NEG: 2, OUT: 3}
    for name, truth in (("one", ONE[1]), ("two", TWO[1])):
        pairs = zip(truth.xy_um.tolist(), truth.kind.tolist(), strict=True)
        cells = [{"x": at[0] * 2, "y": at[1] * 2, "label_id": ids[kind]} for at, kind in pairs]
        (tmp_path / "truth" / f"{name}.json").write_text(json.dumps(cells))
    (tmp_path / "truth" / "unseen.json").write_text("[]")
    return tmp_path


def test_the_command_prints_the_table_and_writes_the_files(run, caplog):
    args = ["evaluate", "cells", f"{run}/wsiscore-out", "--truth", f"{run}/truth", "--mpp", "0.5", "-o", f"{run}/e"]
    result = CliRunner().invoke(main, args, catch_exceptions=False)
    assert result.exit_code == 0
    header, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [row[0] for row in rows] == ["one", "two", "total"]
    total = dict(zip(header, rows[-1], strict=True))
    assert total | {"f1": "0.667", "mean_error": "1.0", "index_error": "25.0", "true_index": "nan"} == total
    one = dict(zip(header, rows[0], strict=True))
    assert one | {"tp": "3", "positive_f1": "0.400", "true_index": "50.0", "found_index": "60.0", "ignored": "1"} == one
    for name in ("alone", "unseen", "broken"):
        assert name in caplog.text
    written = [line.split(",") for line in (run / "e" / "cells.csv").read_text().splitlines()]
    assert written == [header, *rows]
    summary = dict(csv.reader((run / "e" / "summary.csv").read_text().splitlines()))
    assert (summary["MP"], summary["MN"], summary["MA"], summary["images_with_index"]) == ("1.5", "0.5", "1", "2")
    figure = ElementTree.fromstring((run / "e" / "index.svg").read_text())
    titles = [title.text for title in figure.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["one: 60.0 % found, 50.0 % annotated", "two: 40.0 % found, 0.0 % annotated"]


def test_images_without_an_index_are_in_a_warning(run, caplog):
    (run / "truth" / "one.json").write_text('[{"x": 1, "y": 1, "label_id": 3}]')
    write_found(run / "wsiscore-out" / "two" / "cells.parquet", FoundCells(np.zeros((0, 2)), np.zeros(0, bool)))
    evaluate_cells([run / "wsiscore-out"], run / "truth", mpp=0.5, out=run / "e")
    assert "no true cell (1): one" in caplog.text
    assert "no predicted cell (1): two" in caplog.text
    assert dict(csv.reader((run / "e" / "summary.csv").read_text().splitlines()))["index_error"] == "nan"
    assert "index of 0 images" in (run / "e" / "index.svg").read_text()


def test_names_cannot_break_the_figure(run):
    name = "a<script>&\"'"
    (run / "wsiscore-out" / "one").rename(run / "wsiscore-out" / name)
    (run / "truth" / "one.json").rename(run / "truth" / f"{name}.json")
    evaluate_cells([run / "wsiscore-out"], run / "truth", mpp=0.5, out=run / "e")
    svg = (run / "e" / "index.svg").read_text()
    assert ElementTree.fromstring(svg) is not None
    assert "<script>" not in svg


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere", "--truth", "truth", "--mpp", "1"], "nowhere holds no cells.parquet or cells.csv"),
        (["wsiscore-out", "--truth", "nowhere", "--mpp", "1"], "nowhere does not exist"),
        (["wsiscore-out", "--truth", "truth"], "with --mpp"),
        (["truth/one.json", "--truth", "truth", "--mpp", "1"], "not a table of cells"),
        (["bad.csv", "--truth", "truth/one.json", "--mpp", "1"], "cells of class tumour"),
        (["nan.csv", "--truth", "truth/one.json", "--mpp", "1"], "positions that are not finite"),
        (["wsiscore-out", "--truth", "truth", "--mpp", "1", "-o", "bad.csv/e"], "cannot write bad.csv/e"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_1(run, monkeypatch, args, says):
    monkeypatch.chdir(run)
    (run / "bad.csv").write_text("x_um,y_um,class\n1,2,tumour\n")
    (run / "nan.csv").write_text("x_um,y_um,class\n1,nan,positive\n")
    result = CliRunner().invoke(main, ["evaluate", "cells", *args])
    assert (result.exit_code, result.stdout) == (1, "")
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert says in errors[0]


@pytest.mark.parametrize("types", ["1", "one=positive", "1=lymphocyte", "1=positive;2=negative"])
def test_types_that_say_nothing_are_a_usage_error(types):
    result = CliRunner().invoke(main, ["evaluate", "cells", "a", "--truth", "b", "--types", types])
    assert result.exit_code == 2
    assert "1=positive,2=negative" in result.stderr


def test_types_are_taken_from_the_command_line(run):
    (run / "truth" / "one.json").unlink()
    np.save(
        run / "truth" / "one.npy",
        {"inst_map": np.array([[1, 0, 2]]), "type_map": np.array([[5, 0, 6]])},
        allow_pickle=True,
    )
    args = [f"{run}/wsiscore-out/one", "--truth", f"{run}/truth", "--mpp", "1", "--types", "5=positive, 6=negative"]
    result = CliRunner().invoke(main, ["evaluate", "cells", *args])
    assert result.stdout.splitlines()[1].split("\t")[17] == "50.0"


def test_errors_are_leaves_of_the_tree():
    assert issubclass(TruthError, WsiscoreError)
    assert issubclass(TruthError, ValueError)
    assert not issubclass(TruthError, OutputError)


def test_evaluating_loads_no_torch():
    code = "import sys, wsiscore.cli.evaluate, wsiscore.evaluation.images.evaluate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
