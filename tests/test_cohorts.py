"""Many slides in one folder: one row each, the same names whatever the order, cases pooled, and rebuilt from disk."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from reports import cells_at, index_of, without_own_script, words

from wsiscore.analysis.blocks import between_fields
from wsiscore.cli import main
from wsiscore.files import folder_name
from wsiscore.pipeline.cases import pool_cells
from wsiscore.pipeline.cohort import named_apart
from wsiscore.pipeline.job import given_slide
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.report.result import CaseResult, Entry
from wsiscore.score import SlideScore, Tally

WSISCORE = [sys.executable, "-c", "import sys; from wsiscore.cli import main; sys.exit(main())"]
MODEL = ["--model", "hdab", "--mpp", "0.5"]


def field(path: Path, seed: int = 0) -> Path:
    """Write a field of 120 µm with brown and blue nuclei, and a region that is all of it."""
    rng = np.random.default_rng(seed)
    rgb = np.full((240, 240, 3), 240, np.uint8)
    for x, y in rng.permutation([(x, y) for x in range(20, 240, 25) for y in range(20, 240, 25)])[:60].tolist():
        colour = (110, 70, 45) if rng.random() < 0.2 + 0.02 * seed else (95, 105, 160)
        cv2.circle(rgb, (x, y), 7, colour, -1)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.GaussianBlur(rgb, (0, 0), 1)[..., ::-1])
    square = [[0, 0], [240, 0], [240, 240], [0, 240], [0, 0]]
    path.with_suffix(".geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def table(text: str, delimiter: str = "\t") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("fields")
    return [field(folder / f"f{number}.png", number) for number in range(10)]


def test_four_processes_fill_one_folder_with_one_table(tmp_path: Path) -> None:
    """Of 24 slides three are broken, and six share three stems; each process has some of them, in any order."""
    slides = [tmp_path / "in" / f"{place}" / f"{name}.png" for name in ("x", "y", "z") for place in ("a", "b")]
    slides += [tmp_path / "in" / f"s{number}.png" for number in range(18)]
    for number, slide in enumerate(slides):
        field(slide, number)
    for broken in slides[-3:]:
        broken.write_bytes(b"not a picture")
    tables = []
    for attempt in range(2):
        pairs = [slides[at : at + 2] for at in range(0, 24, 2)]  # slides of one stem stay in one process
        Random(attempt).shuffle(pairs)
        out, running = tmp_path / f"out{attempt}", []
        for batch in range(4):
            given = [str(slide) for pair in pairs[batch::4] for slide in pair]
            Random(attempt).shuffle(given)
            running.append(
                subprocess.Popen(
                    [*WSISCORE, "score", *given, *MODEL, "-o", str(out)],
                    env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        printed = [row for process in running for row in table(process.communicate()[0])]
        rows = table((out / "scores.csv").read_text(), ",")
        assert len(rows) == 24
        assert sorted(row["path"] for row in rows) == sorted(map(str, slides))
        assert sorted(row["slide"] for row in printed) == [row["slide"] for row in rows]
        assert sum(row["call"].startswith("error: ") for row in rows) == 3
        tables.append(rows)
    assert tables[0] == [row | {"call": row["call"].replace("out1", "out0")} for row in tables[1]]
    assert {row["slide"] for row in tables[0]} >= {f"s{number}" for number in range(18)}
    assert sum(re.fullmatch(r"[xyz]-[0-9a-f]{6}", row["slide"]) is not None for row in tables[0]) == 6


@given(st.lists(st.sampled_from(["a/x.svs", "b/x.svs", "c/X.svs", "a/y.svs", "b/z.tif"]), unique=True), st.randoms())
def test_names_do_not_depend_on_order(names: list[str], random: Random) -> None:
    def distinct(paths: list[str]) -> dict[Path, bool]:
        jobs = named_apart([(Path(path), ScoreOptions(out=Path("out"))) for path in paths])
        return {path: options.distinct for path, options in jobs}

    shuffled = random.sample(names, len(names))
    assert distinct(names) == distinct(shuffled)
    assert {str(path) for path, apart in distinct(names).items() if apart} <= {"a/x.svs", "b/x.svs", "c/X.svs"}


def test_a_slide_and_what_was_made_of_it_are_scored_once(fields: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("score", fields[0], *MODEL, "-o", out).exit_code == 0
    mosaic, tiles = out / "f0" / "mosaic.ome.zarr", out / "f0" / "tiles.json"
    assert given_slide(mosaic) == given_slide(tiles) == given_slide(fields[0])
    done = run("score", mosaic, tiles, mosaic, "-o", out)
    assert len(table(done.stdout)) == 1


def test_a_manifest_gives_each_slide_its_own(fields: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "corner.geojson"
    square = [[0, 0], [120, 0], [120, 240], [0, 240], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [square]}
    kinds = ("Tumor", "Gland")
    other.write_text(
        json.dumps(
            [{"type": "Feature", "geometry": geometry, "properties": {"classification": kind}} for kind in kinds]
        )
    )
    here = os.path.relpath(fields[0], tmp_path)
    lines = [
        "Path,case,name,mpp,roi,roi_class,specimen,clone,platform",
        f'{here},P 1,first,0.5,,,biopsy,MIB-1,"Link, 48"',
        ",,,,,,,,",
        f"{fields[1]},P 1,second,0.25,corner.geojson,tumor,,30-9,",
        "gone.png,P 2,,,,,,,",
    ]
    (tmp_path / "slides.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    done = run("score", "--manifest", tmp_path / "slides.csv", "--model", "hdab", "-o", tmp_path / "out")
    first, second, gone = table(done.stdout)
    assert done.exit_code == 1
    assert [row["slide"] for row in (first, second, gone)] == ["first", "second", "gone"]
    assert [row["case"] for row in (first, second, gone)] == ["P 1", "P 1", "P 2"]
    assert (float(first["area_mm2"]), float(second["area_mm2"])) == (0.014, 0.002)
    assert Path(first["path"]).samefile(fields[0])
    assert len(first["sha256"]) == 64
    assert gone["call"].startswith("error: ")
    report = words((tmp_path / "out" / "first" / "report.html").read_text())
    for text in ("Specimen biopsy", "Antibody clone and platform MIB-1, Link, 48", "Case P 1"):
        assert text in report
    one, two = table((tmp_path / "out" / "cases.csv").read_text(), ",")
    assert (one["slides"], one["failed"], one["clone"]) == ("2", "0", "30-9; MIB-1")
    assert int(one["positive"]) == int(first["positive"]) + int(second["positive"])
    assert float(one["area_mm2"]) == pytest.approx(0.0162, abs=5e-4)
    assert (two["slides"], two["failed"], two["call"]) == ("1", "1", "error: no slide of it was scored")


MANIFESTS = {
    "path,stain\na.svs,x\n": r"unknown column 'stain'; wanted some of path, case, .*platform",
    "case\nA\n": "has no column 'path'",
    "path,path\na,b\n": "has a column twice",
    "path,mpp\na.svs,0\n": "line 2: mpp is '0', wanted a positive number",
    "path,mpp\na.svs,x\n": "line 2: mpp is 'x'",
    "path,case\n,A\n": "line 2: the path of the slide is missing",
    "path\na.svs,b\n": "line 2: 2 fields, wanted 1",
    "path,name\na.svs,n\nb.svs,N\n": "line 3: the name 'N' is that of line 2 too",
    "path,name\na.svs,../n\n": "'../n' cannot name a folder",
    "path,name\na.svs,.n\n": "'.n' cannot name a folder",
    "path\n": "lists no slide",
    "": "has no column 'path'",
    "path\n\xff": "is not UTF-8",
}


@pytest.mark.parametrize("text", MANIFESTS, ids=repr)
def test_a_wrong_manifest_is_one_line_before_any_work(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.csv").write_bytes(text.encode("latin-1"))
    done = run("score", "--manifest", tmp_path / "m.csv", "-o", tmp_path / "out")
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(MANIFESTS[text], done.stderr), done.stderr
    assert not (tmp_path / "out").exists()


def test_a_manifest_stands_alone(fields: list[Path], tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text(f"path\n{fields[0]}\n")
    for both in ([], [fields[0], "--manifest", tmp_path / "m.csv"]):
        assert run("score", *both).exit_code == 2
    with_roi = run("score", "--manifest", tmp_path / "m.csv", "--roi", fields[0].with_suffix(".geojson"))
    assert (with_roi.exit_code, "column 'roi'" in with_roi.stderr) == (2, True)


def test_a_cohort_is_rebuilt_from_its_folder(fields: list[Path], tmp_path: Path) -> None:
    lines = ["path;case", *(f"{slide};A" for slide in fields)]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    out = tmp_path / "out"
    scored = run("score", "--manifest", tmp_path / "m.csv", *MODEL, "-o", out)
    assert scored.exit_code == 0
    names = ("scores.csv", "cases.csv", "index.html", "cases/A/case.html")
    before = {name: (out / name).read_bytes() for name in names}
    for name in names:
        (out / name).unlink()
    done = run("cohort", out)
    assert done.exit_code == 0
    assert table(done.stdout) == table(scored.stdout)
    assert {name: (out / name).read_bytes() for name in names} == before
    (case,) = table(before["cases.csv"].decode(), ",")
    n = [int(row["positive"]) + int(row["negative"]) for row in table(scored.stdout)]
    found = between_fields(n, [int(row["positive"]) for row in table(scored.stdout)])
    assert found is not None
    assert float(case["design_effect"]) == pytest.approx(found.design_effect, abs=0.005)
    assert (case["blocks"], case["block_um"]) == ("10", "nan")
    page = (out / "index.html").read_text()
    assert "<script" not in without_own_script(page)
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(pictures) == 10
    assert all(len(picture) < 10_000 and base64.b64decode(picture)[:2] == b"\xff\xd8" for picture in pictures)


def test_what_holds_no_results_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    done = run("cohort", tmp_path)
    assert done.exit_code == 1
    assert "holds no results" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_case_of_two_models_has_no_index(tmp_path: Path, fields: list[Path]) -> None:
    (tmp_path / "m.csv").write_text("\n".join(["path,case", *(f"{slide},A" for slide in fields[:2])]))
    assert run("score", "--manifest", tmp_path / "m.csv", *MODEL, "-o", tmp_path / "out").exit_code == 0
    file = tmp_path / "out" / "f0" / "score.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": "other"}))
    assert run("cohort", tmp_path / "out").exit_code == 0
    (case,) = table((tmp_path / "out" / "cases.csv").read_text(), ",")
    assert case["call"] == "error: its slides have different models (hdab, other); score them alike"
    assert "different models" in (tmp_path / "out" / "cases" / "A" / "case.html").read_text()


positions = st.lists(st.tuples(st.floats(0, 9000), st.floats(0, 9000)), min_size=1, max_size=30)


@given(st.lists(positions, min_size=1, max_size=4), st.sampled_from([250, 500, 1000, 2000]))
def test_no_block_holds_cells_of_two_slides(slides: list[list[tuple[float, float]]], side: int) -> None:
    pooled = pool_cells([cells_at(*zip(*slide, strict=True), [0.9] * len(slide)) for slide in slides])
    owner = np.repeat(np.arange(len(slides)), [len(slide) for slide in slides])
    blocks: dict[tuple[int, int], set[int]] = {}
    for x, y, which in zip(pooled.x_um.tolist(), pooled.y_um.tolist(), owner.tolist(), strict=True):
        blocks.setdefault((math.floor(x / side), math.floor(y / side)), set()).add(which)
    assert all(len(owners) == 1 for owners in blocks.values())


@given(st.text(), st.text())
def test_the_folder_of_a_case_is_one_plain_name(one: str, other: str) -> None:
    for case in (one, other):
        folder = folder_name(case)
        assert folder
        assert not set(folder) & set("/\\\0\n")
        assert not folder.startswith(".")
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_names_of_cases_are_only_text(tmp_path: Path) -> None:
    name = "<b>&\"'{{ 7 }}"
    score = SlideScore(name, "m", Tally(300, 700, 1.0), case=name)
    case = CaseResult(name, (Entry(name, score, folder="s"),), score, folder=folder_name(name))
    page = index_of([Entry(name, score, folder="s")], tmp_path / "index.html", [case])
    assert "<b>" not in page
    assert name in words(page)
