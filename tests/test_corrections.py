"""A corrected report states the edits, keeps the one it replaces, and is not replaced by chance."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet
import pytest
from chromium import CHROMIUM, Page, chromium
from commands import answering, rows, run
from reports import words

from wsiscore.cells.marked import read_marked
from wsiscore.cli import main
from wsiscore.errors import CorrectionError
from wsiscore.export.exporters import export_slide
from wsiscore.pipeline.issue import earlier_reports, keep_earlier
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import score_slide
from wsiscore.report.json import read_score
from wsiscore.report.reissue import reissue_command


@pytest.fixture
def folder(scored: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """Return a slide's folder that this test may change."""
    return Path(shutil.copytree(scored[0], tmp_path / "out")) / "rendered"


@contextmanager
def editing(folder: Path, path: Path) -> Iterator[list[dict[str, Any]]]:
    """Give the features of a slide's cells, and write to `path` what is made of them."""
    document = json.loads((folder / "cells.geojson").read_text(encoding="ascii"))
    yield document["features"]
    path.write_text(json.dumps(document), encoding="utf-8")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def flipped(feature: dict[str, Any]) -> None:
    name = feature["properties"]["classification"]["name"]
    feature["properties"]["classification"]["name"] = {"Positive": "Negative", "Negative": "Positive"}[name]


def ten_edits(folder: Path, path: Path) -> int:
    """Delete three cells, add three and change four; return by how many the positive ones grow."""
    before = rows_of(folder)
    with editing(folder, path) as features:
        del features[5:8]
        for feature in features[:4]:
            flipped(feature)
        x, y = features[20]["geometry"]["coordinates"]
        new = {"type": "MultiPoint", "coordinates": [[x + 11, y], [x - 11, y], [x, y + 11]]}
        properties = {"objectType": "annotation", "classification": {"name": "Positive"}}
        features.append({"type": "Feature", "geometry": new, "properties": properties})
    lost = sum(before[5:8])
    return 3 - lost + sum(1 - 2 * was for was in before[:4])


def rows_of(folder: Path) -> list[int]:
    """Return 1 for each positive cell of a slide, else 0."""
    return [word == "positive" for word in pyarrow.parquet.read_table(folder / "cells.parquet")["class"].to_pylist()]


def test_ten_edits_make_a_new_report_and_keep_the_old(folder: Path, tmp_path: Path) -> None:
    before, stored = files(folder), read_score(folder / "score.json")
    grown = ten_edits(folder, tmp_path / "edited.geojson")
    done = run("score", folder / "mosaic.ome.zarr", "--cells", tmp_path / "edited.geojson", "--author", "A  <Name>")
    assert done.exit_code == 0, done.output
    (row,) = rows(done)
    assert (row["edits"], row["author"], row["positive"]) == ("10", "A <Name>", str(stored.total.n_positive + grown))
    assert "cells_edited" in row["flags"]
    score = read_score(folder / "score.json")
    assert (score.edits.added, score.edits.deleted, score.edits.changed) == (3, 3, 4)
    assert (score.edits.found_positive, score.edits.found_negative) == (
        stored.total.n_positive,
        stored.total.n_negative,
    )
    assert (score.total.n, score.model_error) == (stored.total.n, None)
    document = (folder / "report.html").read_text(encoding="utf-8")
    assert f"Issued by A <Name> on {score.issue.date[:10]}, with cells corrected by hand: 3 added, 3 deleted, 4 of" in (
        words(document)
    )
    assert 'href="earlier/1/report.html"' in document
    kept = files(folder / "earlier" / "1")
    assert kept == {name: before[name] for name in kept}
    assert {"report.html", "score.json", "cells.parquet", "cells.geojson", "run.json"} <= set(kept)
    table = pyarrow.parquet.read_table(folder / "cells.parquet")
    edits = table["edit"].to_pylist()
    assert (edits.count("added"), edits.count("class changed"), len(edits)) == (3, 4, score.total.n)
    with (folder.parent / "scores.csv").open(encoding="utf-8") as file:
        assert [each["edits"] for each in csv.DictReader(file)] == ["10"]


@contextmanager
def correcting(page: Page, address: str, downloads: Path) -> Iterator[Callable[[str], str]]:
    """Open a page with a viewer, and give what presses keys in it and returns what it says of the edits."""

    def press(keys: str) -> str:
        for key in keys.split():
            page.press(key)
        return page.run("document.querySelector('.edits').textContent")

    downloads.mkdir()
    page.open(address)
    page.run("document.querySelector('#viewer canvas').focus()")
    yield press
    assert page.errors == []
    assert {asked.partition("tile/")[0] for asked in page.asked} == {address}
    page.asked.clear()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_cells_edited_in_the_viewer_come_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = "dispatchEvent(new Event('beforeunload', {cancelable: true}))"
    before = pyarrow.parquet.read_table(folder / "cells.parquet").to_pylist()
    with chromium() as page:
        with answering(folder) as server, correcting(page, server.address, tmp_path / "one") as press:
            assert press("e p b x Delete s u") == ""  # no cell is chosen
            assert press("n x") == "1 edit: 1 changed, not saved"
            for more in ("n Delete", "n Delete u"):
                assert press(more) == "2 edits: 1 deleted, 1 changed, not saved"
            wanted = "3 edits: 1 deleted, 2 changed, not saved"
            assert press("n p") == wanted or press("b") == wanted  # the first may be what it is
            said = next(filter(lambda said: "added" in said, (press("ArrowLeft a") for _ in range(9))))
            assert said == "4 edits: 1 added, 1 deleted, 2 changed, not saved"
            assert not page.run(leaves)
            edited = page.download("s", tmp_path / "one")
            assert (press(""), page.run(leaves)) == (said.replace("not saved", "saved"), True)
            command = page.run("document.querySelector('.next code').textContent")
        given = shlex.split(command.replace("~/Downloads", str(edited.parent)).replace("Your Name", "A Name"))
        assert (given[:3], given[-3:]) == (["cd", str(folder.parent), "&&"], [str(edited), "--author", "A Name"])
        monkeypatch.chdir(folder.parent)
        assert rows(run(*given[4:]))[0]["edits"] == "4"
        edits = read_score(folder / "score.json").edits
        assert (edits.added, edits.deleted, edits.changed) == (1, 1, 2)
        after = pyarrow.parquet.read_table(folder / "cells.parquet").to_pylist()
        untouched = [each for each in after if each["edit"] == "none"]
        assert [each for each in before if each in untouched] == untouched
        with correcting(page, (folder / "report.html").as_uri(), tmp_path / "two") as press:
            assert press("e") == ""
            again = page.download("s", tmp_path / "two")
            assert page.run("document.querySelector('.next code').textContent").startswith(
                command.partition(" --cells")[0]
            )
    for one, two in zip(*(astuple(read_marked(path, 0.5)) for path in (edited, again)), strict=True):
        np.testing.assert_array_equal(np.sort(one), np.sort(two))


def test_an_issued_report_is_replaced_by_a_correction_or_force_alone(folder: Path, tmp_path: Path) -> None:
    mosaic, edited = folder / "mosaic.ome.zarr", tmp_path / "edited.geojson"
    ten_edits(folder, edited)
    score_slide(mosaic, ScoreOptions(cells=edited, author="A"))
    issued, table = files(folder), (folder.parent / "scores.csv").read_text(encoding="utf-8")
    slide = json.loads(issued["run.json"])["slide"]["path"]
    for given in (mosaic, slide):
        done = run("score", given, "-o", folder.parent, *(() if given == mosaic else ("--model", "hdab")))
        assert done.exit_code == 1
        assert "issued by A on" in rows(done)[0]["call"]
        assert files(folder) == issued
    assert "issued by A" not in (folder.parent / "scores.csv").read_text(encoding="utf-8") != table
    with editing(folder, tmp_path / "again.geojson") as features:
        flipped(features[0])
    second = score_slide(mosaic, ScoreOptions(cells=tmp_path / "again.geojson", author="B"))
    assert second.issue.author == "B"
    assert files(folder / "earlier" / "2") == {name: issued[name] for name in files(folder / "earlier" / "2")}
    exported = export_slide(folder, ["fhir", "spatialdata"])
    third = score_slide(mosaic, ScoreOptions(force=True))
    assert [path.exists() for path in exported] == [False, False]  # of results that are no more
    assert third.issue is None
    assert earlier_reports(folder) == ["1", "2", "3"]
    assert "cells" not in json.loads((folder / "run.json").read_text(encoding="utf-8"))["settings"]
    score_slide(mosaic, ScoreOptions(cutoff=30, csv=True))
    assert not (folder / "cells.parquet").exists()  # of cells that are no more
    assert earlier_reports(folder) == ["1", "2", "3"]


def test_a_report_is_issued_with_the_cells_of_the_model(folder: Path) -> None:
    before = read_score(folder / "score.json")
    score = score_slide(folder / "mosaic.ome.zarr", ScoreOptions(author="A"))
    assert replace(score, issue=None) == before
    assert read_score(folder / "score.json") == score
    with pytest.raises(CorrectionError, match="issued by A"):
        score_slide(folder / "mosaic.ome.zarr", ScoreOptions(author="B"))


@pytest.mark.parametrize("kind", ["half", "empty", "moved", "other options", "slide"])
def test_a_correction_that_cannot_be_used_changes_nothing(folder: Path, tmp_path: Path, kind: str) -> None:
    edited, given, options = tmp_path / "edited.geojson", folder / "mosaic.ome.zarr", []
    with editing(folder, edited) as features:
        for feature in features:
            x, y = feature["geometry"]["coordinates"]
            feature["geometry"]["coordinates"] = [x + 300 * (kind == "moved"), y]
    if kind in {"half", "empty"}:
        edited.write_bytes(edited.read_bytes()[: 5000 * (kind == "half")])
    if kind == "other options":
        options = ["--threshold", "0.9"]
    if kind == "slide":
        given = Path(json.loads((folder / "run.json").read_text(encoding="utf-8"))["slide"]["path"])
        options = ["--model", "hdab"]
    before = files(folder)
    done = run("score", given, *options, "--cells", edited, "--author", "A", "-o", folder.parent)
    assert done.exit_code == 1
    assert rows(done)[0]["call"].startswith("error: ")
    assert files(folder) == before
    assert not (folder / "earlier").exists()
    with (folder.parent / "scores.csv").open(encoding="utf-8") as file:
        assert [each["call"].startswith("error") for each in csv.DictReader(file)] == [False]


def test_what_was_kept_before_a_kill_is_kept_once(folder: Path) -> None:
    issued = score_slide(folder / "mosaic.ome.zarr", ScoreOptions(author="A"))
    (folder / "earlier" / ".part").mkdir()
    for _ in range(2):
        keep_earlier(folder, issued.issue)
    assert earlier_reports(folder) == ["1", "2"]
    assert not (folder / "earlier" / ".part").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [(["--cells", "c"], "needs --author"), (["--cells", "c", "--author", "A", "b.svs"], "of a single mosaic")],
)
def test_wrong_usage(tmp_path: Path, given: list[str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c").write_text("")
    done = run("score", "a.ome.zarr", *given)
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_command_for_a_correction_repeats_what_was_given() -> None:
    assert reissue_command({}, "a b") == "wsiscore score 'a b/mosaic.ome.zarr'"
    given = {"cutoff": 14.0, "rules": {"radius_um": 2.5}, "roi": "r.geojson", "roi_classes": ["Tumor"], "csv": True}
    mosaic = "../../out/a b/mosaic.ome.zarr"
    found = shlex.split(reissue_command({"options": {**given, "mosaic": mosaic}}, "a b"))
    roi = ["--roi", str(Path("r.geojson").absolute()), "--roi-class", "Tumor"]
    assert found == [
        "wsiscore",
        "score",
        "../out/a b/mosaic.ome.zarr",
        "-o",
        ".",
        *roi,
        "--cutoff",
        "14",
        "--radius",
        "2.5",
        "--csv",
    ]
    with main.get_command(click.Context(main), "score").make_context(
        "score", found[2:], resilient_parsing=True
    ) as made:
        assert (made.params["cutoff"], made.params["roi_classes"]) == (14, ("Tumor",))
