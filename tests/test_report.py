"""What is written of a score says the same everywhere, and nothing that was not counted."""

from __future__ import annotations

import csv
import dataclasses
import html
import io
import json
import math
import re
import shutil
import subprocess
import uuid
from pathlib import Path

import cv2
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from making import write_png
from PIL import Image

from wsiscore.cells.table import Cells
from wsiscore.errors import OutputError, SlideError
from wsiscore.files import replacing
from wsiscore.regions import Region, Roi
from wsiscore.report.cohort import Entry, write_index
from wsiscore.report.fields import choose_fields, local_fields
from wsiscore.report.html import write_report
from wsiscore.report.overlay import write_overlay
from wsiscore.report.page import whole_percent
from wsiscore.report.picture import jpeg, take
from wsiscore.report.qupath import write_cells
from wsiscore.report.tables import (
    HEADER,
    error_row,
    row,
    score_json,
    write_cells_table,
    write_score,
    write_scores_csv,
)
from wsiscore.score import SlideScore, Tally, score_cells
from wsiscore.slide.readers.base import VirtualStain
from wsiscore.slide.slide import Slide

HOSTILE = "a<script>alert(1)</script>&\"'\udce9 ü.svs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RUN = {
    "wsiscore": "1.2.3",
    "started": "2025-01-01T12:00:00+00:00",
    "slide": {"path": f"/slides/{HOSTILE}", "sha256": "ab" * 32, "mpp": 0.5},
    "model": {"name": "test", "family": "hdab", "version": "7", "weights_sha256": None},
    "settings": {"threshold": 0.5, "radius_um": 3.0, "roi_source": "found tissue", "nested": {"depth": 1}},
    "versions": {"numpy": "2.0"},
    "stages": {"infer": 1.25},
    "warnings": ["2 tiles <could> not be read"],
}
PAINTED = VirtualStain("pix<2>pix", "/slides/he.svs", "3", "ab" * 32)
tallies = st.builds(Tally, st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1000))


def cells_at(x_um, y_um, positivity, dab_od=None) -> Cells:
    x_um, y_um, positivity = (np.asarray(values, np.float64) for values in (x_um, y_um, positivity))
    dab_od = positivity if dab_od is None else np.asarray(dab_od, np.float64)
    return Cells(x_um, y_um, np.full(len(x_um), 0.75), positivity, dab_od, np.zeros(len(x_um), np.int64))


def scattered(n: int, share: float = 0.25, side_um: float = 200.0) -> Cells:
    rng = np.random.default_rng(7)
    positivity = np.where(np.arange(n) < round(share * n), 0.9, 0.1)
    return cells_at(*rng.uniform(1, side_um - 1, (2, n)), positivity)


@pytest.fixture
def slide(tmp_path):
    rng = np.random.default_rng(1)
    rgb = rng.integers(180, 255, (400, 400, 3), np.uint8)
    with Slide(write_png(tmp_path / "slide.png", rgb), 0.5) as opened:
        yield opened


def report_of(slide, cells, path, *, name="a slide", rois=None, run=RUN) -> str:
    rois = rois or [Roi("left", shapely.box(0, 0, 100, 200)), Roi("right", shapely.box(100, 0, 200, 200))]
    score = score_cells(cells, rois, slide=name, model="test")
    write_report(path, slide=slide, rois=rois, cells=cells, score=score, run=run)
    return path.read_text(encoding="utf-8")


def words(document: str) -> str:
    """Return what a reader sees, on one line."""
    return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", document, flags=re.S)).split())


# ---- the numbers


@given(tallies, tallies, st.floats(1, 99))
def test_json_and_row_say_what_was_counted(one, other, cutoff):
    score = SlideScore("s", "m", one + other, {"one": one, "other": other}, cutoff)
    told = json.loads(json.dumps(score_json(score), allow_nan=False))
    assert set(HEADER) <= set(told)
    assert (told["positive"], told["negative"], told["call"]) == (
        score.total.n_positive,
        score.total.n_negative,
        score.call,
    )
    assert (told["ki67_index"] is None) == (score.total.n == 0)
    assert sum(roi["positive"] for roi in told["by_roi"].values()) == told["positive"]
    fields = dict(zip(HEADER, row(score), strict=True))
    for key in HEADER:
        if told[key] is None:
            assert fields[key] == "nan"
        elif key in {"slide", "model", "call"}:
            assert fields[key] == told[key]
        else:
            assert float(fields[key]) == pytest.approx(told[key], abs=0.0501 if "area" not in key else 0.000501)


def test_no_cells_has_no_numbers():
    score = SlideScore("s", "m", Tally(0, 0, 0.5))
    assert row(score)[4:] == ["nan", "nan", "nan", "0.500", "no cells"]
    assert [score_json(score)[key] for key in ("ki67_index", "low95", "high95")] == [None] * 3
    assert error_row("s", "m", "no\nmpp")[2:] == ["nan"] * 6 + ["error: no\\nmpp"]


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


@given(st.floats(0, 100), st.floats(0.5, 99.5))
def test_the_shown_percent_is_on_the_side_of_the_call(index, cutoff):
    shown = float(whole_percent(index, cutoff).removesuffix(" %"))
    assert (shown >= cutoff) == (index >= cutoff)
    assert abs(shown - index) <= 0.5


# ---- cells


def test_cells_tables_hold_every_column(tmp_path):
    cells = dataclasses.replace(cells_at([1.25, 2], [3, 4.5], [0.5, 0.4999], [0.3, math.nan]), roi=np.array([1, 0]))
    rois = [Roi("a,b", shapely.box(0, 0, 9, 9)), Roi("ü", shapely.box(0, 0, 9, 9))]
    for name, read in (("c.parquet", pyarrow.parquet.read_table), ("c.csv", pyarrow.csv.read_csv)):
        write_cells_table(tmp_path / name, cells, rois)
        table = read(tmp_path / name).to_pydict()
        assert list(table) == ["x_um", "y_um", "class", "confidence", "positivity", "dab_od", "roi"]
        assert table["x_um"] == [1.25, 2]
        assert table["class"] == ["positive", "negative"]
        assert table["roi"] == ["ü", "a,b"]
        assert table["dab_od"][0] == 0.3
        write_cells_table(tmp_path / name, cells.select(np.zeros(2, bool)), rois)
        assert read(tmp_path / name).num_rows == 0
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        write_cells_table(tmp_path / "c.txt", cells, rois)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e5), st.floats(0, 1e5), st.floats(0, 1), st.floats(0, 3) | st.just(math.nan)),
        max_size=20,
    ),
    st.floats(0.05, 2),
)
def test_geojson_is_what_qupath_imports_as_detections(tmp_path_factory, drawn, mpp):
    cells = cells_at(*np.array(drawn, np.float64).reshape(-1, 4).T)
    path = tmp_path_factory.mktemp("qupath") / "cells.geojson"
    write_cells(path, cells, mpp=mpp)
    text = path.read_text(encoding="ascii")
    collection = json.loads(text, parse_constant=pytest.fail)  # NaN is no JSON
    features = collection["features"]
    assert (collection["type"], len(features)) == ("FeatureCollection", len(cells))
    assert len({uuid.UUID(feature["id"]) for feature in features}) == len(cells)
    assert text.count("\n") == len(cells) + 2
    for number, feature in enumerate(features):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Point"
        x, y = feature["geometry"]["coordinates"]
        assert abs(x - cells.x_um[number] / mpp) <= 0.01
        assert abs(y - cells.y_um[number] / mpp) <= 0.01
        told = feature["properties"]
        assert told["objectType"] == "detection"
        positive = {"name": "Positive", "color": [250, 62, 62]}
        negative = {"name": "Negative", "color": [112, 112, 225]}
        assert told["classification"] == (positive if cells.positive[number] else negative)
        measured = {"Confidence", "Positivity"} | ({"DAB OD mean"} if np.isfinite(cells.dab_od[number]) else set())
        assert set(told["measurements"]) == measured
    write_cells(path, cells, mpp=mpp)
    assert path.read_text(encoding="ascii") == text


def test_cells_keep_their_ids_apart_from_those_of_other_slides(tmp_path):
    for name, x_um in (("a", [1.0]), ("b", [2.0])):
        write_cells(tmp_path / name, cells_at(x_um, [1], [1]), mpp=1)
    ids = {json.loads((tmp_path / name).read_text())["features"][0]["id"] for name in "ab"}
    assert len(ids) == 2
    assert all(uuid.UUID(one).version == 8 for one in ids)


# ---- pictures


@pytest.mark.parametrize(("mpp", "extent"), [(0.5, 200.0), (20.0, 8000.0)])
def test_overlay_marks_cells_in_their_place(tmp_path, mpp, extent):
    path = write_png(tmp_path / "white.png", np.full((400, 400, 3), 255, np.uint8))
    quarter = extent / 4
    cells = cells_at([quarter, 3 * quarter], [quarter, 3 * quarter], [1, 0])
    with Slide(path, mpp) as slide:
        write_overlay(tmp_path / "overlay.jpg", slide, [], cells)
    with Image.open(tmp_path / "overlay.jpg") as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape[1] == 400
    assert pixels.shape[0] > 400  # the legend
    red, _, blue = np.moveaxis(pixels[:400], 2, 0)
    for channel, at in ((red - blue, 100), (blue - red, 300)):
        y, x = np.nonzero(channel > 60)
        assert abs(x.mean() + 0.5 - at) < 0.5
        assert abs(y.mean() + 0.5 - at) < 0.5
    if mpp == 0.5:  # a ring leaves the nucleus to be seen
        assert pixels[100, 100].min() > 240


def test_overlay_is_no_larger_than_asked_and_outlines_the_regions(tmp_path, slide):
    roi = Roi("r", shapely.box(50, 50, 150, 150))
    write_overlay(tmp_path / "o.jpg", slide, [roi], scattered(0), max_px=200)
    with Image.open(tmp_path / "o.jpg") as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape[1] == 200
    yellow = (pixels[..., 0] > 200) & (pixels[..., 2] < 90)
    assert yellow[50, 60:140].mean() > 0.9  # 50 µm at 1 µm/px
    assert not yellow[60:140, 60:140].any()


def test_the_noisiest_picture_can_be_written():
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8)
    with Image.open(io.BytesIO(jpeg(noise, quality=88))) as image:
        assert image.size == (600, 600)


def test_an_unreadable_place_is_grey_and_the_rest_is_shown():
    class Torn:
        mpp = 1.0

        def read(self, region: Region) -> np.ndarray:
            if region.x >= 256:
                raise SlideError("torn")
            return np.full((region.height, region.width, 3), 255, np.uint8)

    pixels = take(Torn(), (0, 0, 300, 100), max_px=400).pixels
    assert (pixels[:, :256] == 255).all()
    assert (pixels[:, 256:] == 190).all()


# ---- fields


@settings(deadline=None)
@given(st.integers(0, 300), st.sampled_from([25.0, 50.0, 70.0]))
def test_fields_hold_every_cell_once(n, side_um):
    cells = scattered(n)
    cells = dataclasses.replace(cells, x_um=np.round(cells.x_um / 5) * 5)  # many lie on the edges of the squares
    fields = local_fields(cells, [Roi("all", shapely.box(0, 0, 200, 200))], side_um)
    assert sum(field.tally.n for field in fields) == n
    assert sum(field.tally.n_positive for field in fields) == int(cells.positive.sum())
    assert all(field.tally.n == int(field.holds(cells).sum()) for field in fields)


@settings(deadline=None)
@given(st.integers(1, 500), st.integers(1, 12))
def test_chosen_fields_span_the_range(n, wanted):
    fields = local_fields(scattered(n), [Roi("all", shapely.box(0, 0, 200, 200))], 40.0)
    chosen = choose_fields(fields, wanted)
    indices = [field.tally.ki67_index for field in chosen]
    assert 1 <= len(chosen) <= wanted
    assert indices == sorted(indices)
    assert len({field.bounds_um for field in chosen}) == len(chosen)
    assert set(chosen) <= set(fields)


# ---- pages


def test_report_tells_the_counts(tmp_path, slide):
    document = report_of(slide, scattered(2000, 0.35), tmp_path / "report.html")
    seen = words(document)
    for expected in (
        "35 %", "700", "1,300", "2,000", "0.040 mm²", "50,000 cells/mm²", "High: at or above the cutoff of 20 %",
        "32.9–37.1 %", "left", "right", "All regions", "found tissue", "2 tiles <could> not be read", "infer 1.2 s",
        "hdab, version 7", "nested.depth 1", "research use only", "Antibody clone and platform not given",
    ):  # fmt: skip
        assert expected.lower() in seen.lower(), expected
    assert "virtual" not in seen.lower()
    assert document.count('<figure class="field">') == 4


@pytest.mark.parametrize(
    ("n", "share", "told", "not_told"),
    [
        (0, 0.0, ["No cells", "–", "not an index of 0 %"], ["0 % 95"]),
        (100, 0.5, ["50 %", "Insufficient: 100 cells were counted, and a call needs 500"], ["High"]),
        (1000, 0.19, ["Low, but indeterminate", "includes the cutoff"], ["Low: "]),
        (1000, 0.2, ["High, but indeterminate"], ["High: "]),
        (1000, 0.02, ["Low: below the cutoff of 20 %"], ["indeterminate"]),
    ],
)
def test_report_says_what_the_numbers_allow(tmp_path, slide, n, share, told, not_told):
    seen = words(report_of(slide, scattered(n, share), tmp_path / "report.html"))
    for expected in told:
        assert expected in seen
    for wrong in not_told:
        assert wrong not in seen
    assert "nan" not in seen.split()


def test_report_says_how_far_off_the_index_of_its_model_was(tmp_path, slide):
    errors = {"glioma <2>": 2.8, "breast": 7}
    known = RUN | {"model": RUN["model"] | {"index_errors": errors}}
    told = words(report_of(slide, scattered(600), tmp_path / "known.html", run=known))
    assert "was off by 2.8 points (glioma <2>), 7 points (breast) on average." in told
    assert "no such number" not in told
    assert "its card has no such number" in words(report_of(slide, scattered(600), tmp_path / "not.html"))


def test_an_index_is_not_rounded_across_the_cutoff(tmp_path, slide):
    seen = words(report_of(slide, scattered(1000, 0.199), tmp_path / "report.html"))
    assert "19.9 % Ki67 index" in seen


def test_hostile_names_are_only_text(tmp_path, slide):
    rois = [Roi(HOSTILE, shapely.box(0, 0, 200, 200))]
    document = report_of(slide, scattered(600), tmp_path / "report.html", name=HOSTILE, rois=rois)
    assert "<script" not in document
    assert "alert(1)" in words(document)
    write_index(tmp_path / "index.html", [Entry(HOSTILE, None, HOSTILE, HOSTILE), *entries(HOSTILE)])
    document = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in document
    assert 'href="a%3Cscript%3E' in document


def test_a_virtual_stain_is_called_one(tmp_path, slide):
    score = SlideScore(HOSTILE, "test", Tally(300, 700, 1.0), {}, 20, PAINTED)
    rois = [Roi("all", shapely.box(0, 0, 200, 200))]
    write_report(tmp_path / "report.html", slide=slide, rois=rois, cells=scattered(600), score=score, run=RUN)
    write_index(tmp_path / "index.html", [Entry(HOSTILE, score), *entries("stained")])
    report, index = (words((tmp_path / page).read_text(encoding="utf-8")) for page in ("report.html", "index.html"))
    for seen in (report, index):
        assert "A virtual stain is a guess of a network; not a stained slide." in seen
    assert "Painted by the model pix<2>pix version 3, weights abababababab…, from the slide /slides/he.svs." in report
    assert "1 of 4 scored slides, 1 painted by pix<2>pix" in index
    assert index.count("virtual stain by pix<2>pix") == 1


def test_the_numbers_of_a_virtual_stain_say_so():
    score = SlideScore("s", "test", Tally(3, 1, 0.1), virtual=PAINTED)
    assert row(score)[HEADER.index("model")] == "test on virtual pix<2>pix"
    assert score_json(score)["model"] == "test"
    assert score_json(score)["virtual"] == {
        "model": "pix<2>pix", "version": "3", "weights_sha256": "ab" * 32, "slide": "/slides/he.svs"
    }  # fmt: skip
    assert score_json(dataclasses.replace(score, virtual=None))["virtual"] is None


def test_the_overlay_of_a_virtual_stain_has_a_notice(tmp_path, slide):
    rois = [Roi("all", shapely.box(0, 0, 200, 200))]
    for virtual in (None, PAINTED):
        slide.virtual = virtual
        write_overlay(tmp_path / f"{virtual is None}.jpg", slide, rois, scattered(60))
    plain, marked = (cv2.imread(str(tmp_path / f"{name}.jpg")) for name in (True, False))
    assert len(marked) > len(plain)
    notice = marked[: len(marked) - len(plain)]
    assert notice.std() > 10  # there are letters on it


def test_report_manages_with_an_empty_run(tmp_path, slide):
    seen = words(report_of(slide, scattered(600), tmp_path / "report.html", run={}))
    assert "Origin of the regions not given" in seen


def entries(name="slide") -> list[Entry]:
    def score(positive, negative):
        return SlideScore(name, "test", Tally(positive, negative, 1.0))

    return [
        Entry(f"{name} 1", score(300, 700), folder=name),
        Entry(f"{name} 2", score(200, 800)),
        Entry(f"{name} 3", score(0, 0)),
    ]


def test_cohort_page_has_a_row_for_every_slide(tmp_path):
    write_index(tmp_path / "index.html", [*entries(), Entry("torn.svs", None, "cannot <be> opened")])
    document = (tmp_path / "index.html").read_text(encoding="utf-8")
    seen = words(document)
    for expected in (
        "Ki67 index of 4 slides", "slide 1 30.0 % 27.2–32.9 %", "high, indeterminate", "no cells",
        "torn.svs – – – – Failed: cannot <be> opened", "research use only",
    ):  # fmt: skip
        assert expected.lower() in seen.lower(), expected
    assert 'href="slide/report.html"' in document
    assert 'href="slide/overlay.jpg"' in document
    write_index(tmp_path / "index.html", [])
    assert "No slide was scored" in (tmp_path / "index.html").read_text(encoding="utf-8")


def addresses(document: str) -> set[str]:
    """Return all a browser would fetch or could be led to."""
    quoted = re.findall(r"""(?:href|src|srcset|action|data)\s*=\s*["']([^"']*)""", document)
    return set(quoted) | set(re.findall(r"url\(([^)]*)\)", document)) | set(re.findall(r"@import[^;]*", document))


def test_pages_need_nothing_but_themselves(tmp_path, slide):
    pages = [report_of(slide, scattered(600), tmp_path / "report.html")]
    write_index(tmp_path / "index.html", entries())
    pages.append((tmp_path / "index.html").read_text(encoding="utf-8"))
    for document in pages:
        assert "://" not in document.replace(f"/slides/{HOSTILE}", "")
        assert "<script" not in document
        assert '<html lang="en">' in document
        for address in addresses(document):
            assert address.startswith(("data:image/jpeg;base64,", "#", "slide/")), address[:80]
        assert (
            document.count('role="img"')
            == document.count("<svg")
            == document.count("aria-label=") - document.count('<section class="summary" aria-label=')
        )


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_numbers(tmp_path, slide):
    report_of(slide, scattered(1234, 0.5), tmp_path / "report.html", name=HOSTILE)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    seen = words(done.stdout)
    for expected in ("617", "1,234", "50 % Ki67 index", "High: at or above the cutoff of 20 %", "alert(1)"):
        assert expected in seen
    assert "<script" not in done.stdout
    assert "Refused to" not in done.stderr


# ---- files


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as part:
        part.write_text("first")

    def fail_half_way():
        with replacing(path) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "first"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_written_says_so(tmp_path, slide):
    (tmp_path / "file").write_text("")
    where = tmp_path / "file" / "below"
    score = SlideScore("s", "m", Tally())
    for write in (
        lambda: write_score(where, score),
        lambda: write_scores_csv(where, []),
        lambda: write_cells_table(where.with_suffix(".csv"), scattered(3), [Roi("a", shapely.box(0, 0, 1, 1))]),
        lambda: write_cells(where, scattered(3), mpp=1),
        lambda: write_overlay(where, slide, [], scattered(3)),
        lambda: write_index(where, []),
    ):
        with pytest.raises(OutputError, match=r"cannot write .*; free space there or choose another folder with -o"):
            write()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_told(tmp_path):
    def fill():
        with replacing(tmp_path / "file") as part:
            part.symlink_to("/dev/full")
            part.write_text("x" * 10_000)

    with pytest.raises(OutputError, match="No space left"):
        fill()
    assert not list(tmp_path.iterdir())
