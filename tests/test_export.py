"""`wsiscore export`: each format holds what was counted, by its own reader where that is installed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import shapely
import tifffile
import zarr
from commands import run
from reports import RUN, VIRTUAL

from wsiscore.cells.edits import Edits
from wsiscore.export.exporters import EXPORTERS, export_slide
from wsiscore.export.fhir import observation
from wsiscore.export.results import SlideResults
from wsiscore.mosaic import Mosaic
from wsiscore.report.thumbnail import read_thumbnail
from wsiscore.score import Issue, SlideScore, Tally
from wsiscore.slide.slide import Slide

PAGE = Path(__file__).resolve().parent.parent / "docs" / "exports.md"


@pytest.fixture
def folder(scored: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """Return a slide's folder that this test may change."""
    return Path(shutil.copytree(scored[0], tmp_path / "out")) / "rendered"


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda exporter: exporter.name)
def test_every_format_is_explained(exporter: Any) -> None:
    assert f"| `{exporter.name}` | `{exporter.file}` |" in PAGE.read_text(encoding="utf-8")


# --- FHIR ------------------------------------------------------------------------------------------------------

ISSUE = Issue("A", "2025-01-02T03:04:05+00:00", Edits(1, 2, 3, 290, 710))
SCORES = {
    "plain": SlideScore("s", "test", Tally(300, 700, 1.0)),
    "case": SlideScore("s", "test", Tally(300, 700, 1.0), case="C", issue=ISSUE, flags=("cells_edited",)),
    "no cells": SlideScore("s", "test", Tally(0, 0, 1.0)),
    "unsuitable": SlideScore("s", "test", Tally(300, 700, 1.0), flags=("not_h_dab",)),
    "virtual": SlideScore("s", "test", Tally(3, 7, 1.0), virtual=VIRTUAL),
}


def results_of(score: SlideScore, **facts: str) -> SlideResults:
    return SlideResults(Path(), score, {**RUN, "finished": "2025-01-01T12:01:00+00:00", "facts": facts})


@pytest.mark.parametrize("name", SCORES)
def test_an_observation_says_what_was_counted(name: str) -> None:
    score = SCORES[name]
    found = observation(results_of(score))
    assert (found["resourceType"], found["status"]) == ("Observation", "preliminary")
    assert ("valueQuantity" in found) is (name in {"plain", "case", "virtual"}) is ("dataAbsentReason" not in found)
    if "valueQuantity" in found:
        unit = {"unit": "%", "system": "http://unitsofmeasure.org", "code": "%"}
        assert found["valueQuantity"] == {"value": round(score.total.ki67_index, 1), **unit}
    counts = {each["code"]["text"]: each.get("valueQuantity", {}).get("value") for each in found["component"]}
    assert (counts["Positive cells"], counts["Counted cells"]) == (score.total.n_positive, score.total.n)
    notes = " ".join(each["text"] for each in found["note"])
    assert "research use only" in notes
    assert ("1 added, 2 deleted, 3 of another class" in notes) is (name == "case")
    assert ("virtual stain" in notes) is (name == "virtual")
    assert found["issued"] == (ISSUE.date if name == "case" else "2025-01-01T12:01:00+00:00")
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("specimen", "code"),
    [("", "29593-1"), ("core, Breast", "85330-9"), ("Mamma links", "85330-9"), ("brain", "29593-1")],
)
def test_the_code_is_that_of_the_specimen(specimen: str, code: str) -> None:
    found = observation(results_of(SCORES["plain"], specimen=specimen))
    assert [each["code"] for each in found["code"]["coding"]] == [code]
    assert ("display" in found["specimen"]) is bool(specimen)


@pytest.mark.parametrize("name", SCORES)
def test_fhir_resources_accept_it(name: str) -> None:
    pytest.importorskip("fhir.resources")
    from fhir.resources.observation import Observation
    from fhir.resources.R4B.observation import Observation as ObservationR4

    found = observation(results_of(SCORES[name], specimen="breast", clone="MIB-1"))
    for kind in (Observation, ObservationR4):
        assert kind.model_validate(found).status == "preliminary"


# --- files -----------------------------------------------------------------------------------------------------


def test_the_maps_are_an_ome_tiff(folder: Path) -> None:
    (path,) = export_slide(folder, ["ome-tiff"])
    mosaic = Mosaic.open(folder / "mosaic.ome.zarr")
    with tifffile.TiffFile(path) as file:
        series = file.series[0]
        about = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (series.axes, series.dtype, about["PhysicalSizeX"]) == ("CYX", np.uint8, mosaic.grid.mpp)
        assert [level.shape[-1] for level in series.levels] == [
            zarr.open_array(mosaic.path / str(level)).shape[-1] for level in range(len(series.levels))
        ]
        names = [each["Name"] for each in about["Channel"]]
        maps = mosaic.read(0, 0, mosaic.grid.width_px, mosaic.grid.height_px).astype(np.float32)
        for name, plane, stored in zip(names, series.asarray(), maps, strict=True):
            scale = 100 if name == "dab_od (OD × 100)" else 255
            assert np.array_equal(plane, np.rint(np.clip(stored * scale, 0, 255))), name
    assert [name.split(" ")[0] for name in names] == list(mosaic.channels)


def test_the_store_of_spatialdata_holds_cells_and_regions(folder: Path) -> None:
    for _ in range(2):  # and a second time it is the same
        (path,) = export_slide(folder / "mosaic.ome.zarr", ["spatialdata"])
    points = pyarrow.parquet.read_table(path / "points" / "cells" / "points.parquet")
    stored = pyarrow.parquet.read_table(folder / "cells.parquet")
    for ours, theirs in (("x_um", "x"), ("y_um", "y"), ("class", "class"), ("dab_od", "dab_od")):
        assert points[theirs].to_pylist() == stored[ours].to_pylist()
    attributes = zarr.open_group(path / "points" / "cells", mode="r").attrs.asdict()
    assert attributes["spatialdata_attrs"] == {"version": "0.2", "feature_key": "class"}
    outlines = shapely.from_wkb(pyarrow.parquet.read_table(path / "shapes" / "regions" / "shapes.parquet")["geometry"])
    assert shapely.area(outlines).sum() == pytest.approx(1e6 * SlideResults.read(folder).score.total.area_mm2, rel=1e-6)
    assert zarr.open_array(path / "images" / "slide" / "s0", mode="r").shape[0] == 3


@pytest.mark.filterwarnings("ignore")
def test_spatialdata_opens_its_store(folder: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    (path,) = export_slide(folder, ["spatialdata"])
    store = spatialdata.read_zarr(path)
    cells = store["cells"].compute()
    assert len(cells) == SlideResults.read(folder).score.total.n
    assert set(cells["class"]) == {"positive", "negative"}
    assert list(store["regions"].geometry.geom_type) == ["Polygon"]
    picture = store["slide"]
    scale = spatialdata.transformations.get_transformation(picture).to_affine_matrix(("x", "y"), ("x", "y"))
    extent = spatialdata.get_extent(picture)
    with Slide(Path(SlideResults.read(folder).run["slide"]["path"])) as slide:
        side = slide.height_px * slide.mpp
        assert extent["y"] == pytest.approx((0, side), abs=scale[0, 0])
        whole = read_thumbnail(slide, (0, 0, slide.width_px * slide.mpp, side), max_px=2000)
    assert np.array_equal(np.moveaxis(whole.pixels, -1, 0), picture.values)


@pytest.mark.filterwarnings("ignore")
def test_xarray_opens_the_mosaic(folder: Path) -> None:
    """The levels have axes of one name, as OME-Zarr asks, and other sizes: one level at a time is a data set."""
    xarray = pytest.importorskip("xarray")
    path = folder / "mosaic.ome.zarr"
    smaller = [each.name for each in path.iterdir() if each.name.isdecimal() and each.name != "0"]
    found = xarray.open_zarr(path, consolidated=False, drop_variables=smaller)
    assert found["0"].dims == ("c", "y", "x")
    assert found["done"].dims == ("row", "col")
    assert found["quality"].dims == ("row", "col", "measure")
    assert np.array_equal(found["done"], Mosaic.open(path).states())


def test_what_cannot_be_exported_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (folder / "score.fhir.json").write_text("earlier")
    done = run("export", tmp_path / "empty", tmp_path / "none", folder, "--to", "fhir")
    assert done.exit_code == 1
    assert done.stdout == f"{folder / 'score.fhir.json'}\n"
    assert [re.sub(r".* (holds no score|is no folder);.*", r"\1", line) for line in done.stderr.splitlines()] == [
        "holds no score", "is no folder"
    ]  # fmt: skip
    shutil.rmtree(folder / "mosaic.ome.zarr" / "0" / "c")
    before = sorted(path.name for path in folder.iterdir())
    done = run("export", folder, "--to", "ome-tiff")
    assert (done.exit_code, sorted(path.name for path in folder.iterdir())) == (1, before)
    assert "missing" in done.stderr


# --- DICOM -----------------------------------------------------------------------------------------------------


def dicom_slide(path: Path, width_px: int, height_px: int) -> None:
    """Write the attributes of a whole-slide image, and no pixels."""
    import pydicom

    image = pydicom.Dataset()
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    image.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    for name in ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"):
        setattr(image, name, pydicom.uid.generate_uid())
    for name in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(image, name, "")
    image.StudyDate = image.StudyTime = image.ReferringPhysicianName = ""
    image.Modality, image.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows = width_px, height_px
    image.Rows = image.Columns = 256
    image.NumberOfFrames = 49
    image.ContainerIdentifier, image.SpecimenDescriptionSequence = "1", []
    image.save_as(path, enforce_file_format=True)


def test_dicom_refers_to_the_slide(folder: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    slide = folder.parent / "slide.dcm"
    dicom_slide(slide, record["slide"]["width_px"], record["slide"]["height_px"])
    record["slide"]["path"] = str(slide)
    (folder / "run.json").write_text(json.dumps(record))
    (path,) = export_slide(folder, ["dicom"])
    annotations = highdicom.ann.annread(path / "annotations.dcm")
    results = SlideResults.read(folder)
    groups = {group.label: group for group in annotations.get_annotation_groups()}
    counts = {name: group.number_of_annotations for name, group in groups.items()}
    assert counts == {"Positive": results.score.total.n_positive, "Negative": results.score.total.n_negative}
    table = results.cells.to_pydict()
    first = table["class"].index("positive")
    at = groups["Positive"].get_graphic_data("2D")[0]
    assert np.allclose(at, [[table["x_um"][first] / results.mpp, table["y_um"][first] / results.mpp]], rtol=1e-6)
    report = highdicom.sr.srread(path / "report.dcm")
    assert (report.VerificationFlag, report.StudyInstanceUID) == ("UNVERIFIED", annotations.StudyInstanceUID)
    (group,) = report.content.get_image_measurement_groups()
    found = {each.name.value: each.value for each in group.get_measurements()}
    assert found["29593-1"] == round(results.score.total.ki67_index, 1)
    assert found["counted"] == results.score.total.n


def test_dicom_of_another_slide_is_one_line(folder: Path) -> None:
    done = run("export", folder, "--to", "dicom")
    assert done.exit_code == 1
    assert "no DICOM slide" in done.stderr or "needs the package highdicom" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "dicom").exists()
