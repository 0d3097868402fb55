"""The lists of writers: what they write is documented, linked, and kept apart from the slides' folders."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from reports import entries, index_of, report_of, result_of, scattered, whole_roi

from wsiscore.errors import OutputError
from wsiscore.pipeline.job import open_job
from wsiscore.pipeline.options import TileOptions
from wsiscore.report import writers
from wsiscore.report.tables import read_cells_table
from wsiscore.report.writers import COHORT_WRITERS, WRITERS, CohortWriter, Writer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "files.md"


@pytest.mark.parametrize("writer", [*WRITERS, *COHORT_WRITERS], ids=lambda writer: writer.name)
def test_every_file_is_explained(writer: Writer | CohortWriter) -> None:
    tree = PAGE.read_text(encoding="utf-8").split("```")[1]
    lines = [re.sub(r"[│├└─ ]+", " ", line).strip() for line in tree.splitlines()]
    assert f"{writer.name} {writer.title}" in lines


def test_the_report_comes_last_and_numbers_first() -> None:
    assert [writer.needs_run for writer in WRITERS] == [False] * (len(WRITERS) - 1) + [True]
    assert len({writer.name for writer in WRITERS}) == len(WRITERS)


@pytest.mark.parametrize("csv", [False, True])
def test_the_report_links_to_what_was_written(tmp_path, slide, csv, monkeypatch):
    new = Writer("new.txt", "a new <output>", lambda path, result: path.write_text("new"))
    monkeypatch.setattr(writers, "WRITERS", (new, *WRITERS))
    result = replace(result_of(slide, scattered(600)), csv=csv, beside=("run.json",))
    for writer in writers.WRITERS:
        if writer.when(result):
            writer.write(tmp_path / writer.name, result)
    document = (tmp_path / "report.html").read_text(encoding="utf-8")
    links = re.findall(r'<a href="([^"]+)"', document)
    assert sorted([*links, "report.html"]) == sorted(
        [path.name for path in tmp_path.iterdir() if path.name != "slide.png"] + ["run.json"]
    )
    assert f"cells.{'csv' if csv else 'parquet'}" in links
    assert "a new &lt;output&gt;" in document


def test_a_report_alone_has_no_links(tmp_path, slide):
    assert "<a " not in report_of(slide, scattered(600), tmp_path / "report.html")


def test_the_page_of_a_cohort_links_to_files_of_the_list(tmp_path):
    named = {writer.name for writer in WRITERS if writer.link}
    (tmp_path / "s").mkdir()
    for there in (named, named - {"cells.geojson.zip"}):
        for name in named:
            (tmp_path / "s" / name).unlink(missing_ok=True)
        for name in there:
            (tmp_path / "s" / name).write_text("")
        document = index_of(entries("s"), tmp_path / "index.html")
        linked = {link.removeprefix("s/") for link in re.findall(r'href="([^"]+)"', document)}
        assert linked == there | {"report.html"}


@pytest.mark.parametrize("writer", [*WRITERS, *COHORT_WRITERS], ids=lambda writer: writer.name)
def test_what_cannot_be_written_is_one_line(tmp_path, slide, writer):
    (tmp_path / "file").write_text("")
    if writer.name == "quality.json":
        pytest.skip("the result has no measures of quality")
    made_of = (result_of(slide, scattered(3), rois=[whole_roi()]),) if isinstance(writer, Writer) else (entries(), [])
    with pytest.raises(OutputError, match=r"cannot write .*; free space there or choose another folder with -o"):
        writer.write(tmp_path / "file" / writer.name, *made_of)


@pytest.mark.parametrize("csv", [False, True])
def test_every_file_is_written_to_a_folder_whose_name_is_not_text(tmp_path, slide, csv):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    cells = scattered(30)
    result = replace(result_of(slide, cells, rois=[whole_roi()]), csv=csv)
    for writer in WRITERS:
        if writer.when(result):
            writer.write(folder / writer.name, result)
    found = read_cells_table(folder, [whole_roi().name])
    assert found is not None
    assert len(found[0]) == len(cells)


@pytest.mark.parametrize("name", [*(writer.name for writer in COHORT_WRITERS), "Index.HTML", "cases"])
def test_no_slide_takes_the_name_of_a_file_of_the_cohort(tmp_path, slide, name):
    given = (tmp_path / "slide.png").rename(tmp_path / f"{name}.png")
    folders = []
    for _ in range(2):  # and a second time it is the same folder
        with open_job(given, TileOptions(mpp=0.5, out=tmp_path / "out")) as job:
            folders.append(job.folder)
    assert folders[0] == folders[1]
    assert folders[0].name.startswith(f"{name}-")
