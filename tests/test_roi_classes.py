"""Classes of annotations that are not scored are cut out of the others, and are told."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.errors import RoiError
from wsiscore.pipeline.rois import rois_of
from wsiscore.regions import Roi, scored
from wsiscore.report.qupath import write_regions
from wsiscore.roi.classes import NOT_SCORED, excluded_class, is_not_scored, subtract
from wsiscore.score import score_cells
from wsiscore.slide.slide import Slide
from wsiscore.tiles import TileGrid, rois_from_json, rois_to_json

COUNTED = [
    "",
    "Tumor",
    "Region*",
    "Immune cells",
    "Other",
    "Positive",
    "Penile tumor",
    "Foldless",
    "Inkjet",
    "tissue 1",
]
LEFT_OUT = [
    "Ignore*", "ignore", "Ignored area", "Necrosis", "NECROTIC", "Artifact", "Artefacts", "Fold", "fold_2", "folds",
    "Blur", "Out of focus", "Background", "Stroma", "Tumor: Ignore*", "Tumor: Necrosis",
]  # fmt: skip

squares = st.builds(
    lambda x, y, side, name, out: Roi(name, shapely.box(x, y, x + side, y + side), name, out),
    *(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60)),
    st.text("ab", max_size=2),
    st.booleans(),
)


@pytest.mark.parametrize("name", COUNTED)
def test_other_classes_are_scored(name: str) -> None:
    assert not is_not_scored(name)


@pytest.mark.parametrize("name", [*LEFT_OUT, *(word for words in NOT_SCORED.values() for word in words)])
def test_classes_of_the_table_are_not_scored(name: str) -> None:
    assert is_not_scored(name)
    assert excluded_class(name) == name


@given(st.text())
def test_an_excluded_class_is_recognised_again(name: str) -> None:
    assert is_not_scored(excluded_class(name))


@given(st.lists(squares, min_size=1, max_size=6))
def test_subtraction_parts_the_regions(rois: list[Roi]) -> None:
    """What is scored and what was cut out of it are together what was drawn, and share nothing."""
    drawn = shapely.union_all([roi.outline_um for roi in scored(rois)])
    out = shapely.union_all([roi.outline_um for roi in rois if roi.excluded])
    try:
        result = subtract(rois)
    except RoiError:
        assert out.covers(drawn)
        return
    left = shapely.union_all([roi.outline_um for roi in scored(result)])
    parts = [roi.outline_um for roi in result if roi.excluded]
    assert left.area == pytest.approx(drawn.difference(out).area)
    assert sum(part.area for part in parts) == pytest.approx(drawn.intersection(out).area)
    assert [roi.excluded for roi in result] == sorted(roi.excluded for roi in result)


def feature(name: str, box: tuple[int, int, int, int]) -> dict[str, object]:
    geometry = json.loads(shapely.to_geojson(shapely.box(*box)))
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def annotate(path: Path, *features: dict[str, object]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


TUMOR, NECROSIS = feature("Tumor", (0, 0, 200, 200)), feature("Necrosis", (100, 0, 300, 100))
STROMA, IMMUNE = feature("Stroma", (300, 300, 400, 400)), feature("Immune cells", (0, 100, 100, 200))


def areas(rois: list[Roi]) -> dict[str, float]:
    """Return mm² by class; the slide has 0.5 µm/px."""
    found: dict[str, float] = {}
    for roi in rois:
        key = f"{'-' if roi.excluded else ''}{roi.class_name}"
        found[key] = round(found.get(key, 0) + roi.area_mm2, 9)
    return found


def test_the_area_left_out_is_in_the_score(tmp_path: Path, slide: Slide, caplog: pytest.LogCaptureFixture) -> None:
    rois, _ = rois_of(slide, annotate(tmp_path / "a.geojson", NECROSIS, TUMOR, STROMA))
    assert areas(rois) == {"Tumor": 0.0075, "-Necrosis": 0.0025}
    from reports import scattered

    score = score_cells(scattered(200), rois)
    assert score.excluded == {"Necrosis": pytest.approx(0.0025)}
    assert score.total.area_mm2 == pytest.approx(0.0075)
    assert list(score.by_roi) == ["Tumor"]
    for words in ("scored: Tumor (1)", "Necrosis (1), Stroma (1)", "--exclude-class"):
        assert words in caplog.text


def test_a_class_can_be_excluded_by_name(tmp_path: Path, slide: Slide) -> None:
    file = annotate(tmp_path / "a.geojson", TUMOR, IMMUNE)
    assert areas(rois_of(slide, file)[0]) == {"Tumor": 0.01, "Immune cells": 0.0025}
    assert areas(rois_of(slide, file, exclude=["immune CELLS"])[0]) == {"Tumor": 0.0075, "-Immune cells": 0.0025}


def test_one_class_is_scored_without_a_word(tmp_path: Path, slide: Slide, caplog: pytest.LogCaptureFixture) -> None:
    rois_of(slide, annotate(tmp_path / "a.geojson", TUMOR, TUMOR))
    rois_of(slide, annotate(tmp_path / "b.geojson", TUMOR, NECROSIS), classes=["Tumor"])
    assert not caplog.records


def test_what_is_never_scored_cannot_be_chosen(tmp_path: Path, slide: Slide) -> None:
    file = annotate(tmp_path / "a.geojson", TUMOR, STROMA)
    with pytest.raises(RoiError, match=r"no region is of class Stroma; .* Tumor; never scored are: Stroma"):
        rois_of(slide, file, classes=["Stroma"])
    with pytest.raises(RoiError, match="nothing is left to score: regions of class Fold cover all others"):
        rois_of(slide, annotate(file, TUMOR, feature("Fold", (0, 0, 400, 400))))


def test_exclusions_alone_are_cut_out_of_the_tissue(tmp_path: Path) -> None:
    rgb = np.full((400, 400, 3), 245, np.uint8)
    noise = np.random.default_rng(1).integers(-40, 40, (300, 300, 1))
    rgb[50:350, 50:350] = np.clip(np.array([110, 150, 200]) + noise, 0, 255)
    cv2.imwrite(str(tmp_path / "slide.png"), rgb)
    with Slide(tmp_path / "slide.png", 2.0) as slide:
        tissue = sum(roi.area_mm2 for roi in rois_of(slide)[0])
        rois, source = rois_of(slide, annotate(tmp_path / "b.geojson", feature("Ignore*", (100, 100, 200, 200))))
    assert sum(roi.area_mm2 for roi in scored(rois)) == pytest.approx(tissue - 0.04)
    assert source.startswith("found tissue without the excluded regions of ")


@pytest.mark.parametrize("exclude", [(), ("Immune cells",)])
def test_written_regions_are_scored_the_same(tmp_path: Path, slide: Slide, exclude: tuple[str, ...]) -> None:
    rois, _ = rois_of(slide, annotate(tmp_path / "a.geojson", TUMOR, NECROSIS, IMMUNE), exclude=exclude)
    write_regions(tmp_path / "regions.geojson", rois, mpp=slide.mpp)
    again, _ = rois_of(slide, tmp_path / "regions.geojson")
    assert sum(roi.area_mm2 for roi in scored(again)) == pytest.approx(sum(roi.area_mm2 for roi in scored(rois)))
    assert [roi.name for roi in scored(again)] == [roi.name for roi in scored(rois)]
    for one in json.loads((tmp_path / "regions.geojson").read_text())["features"]:
        assert one["properties"]["objectType"] == "annotation"


def test_tile_lists_keep_classes_and_leave_out_what_is_excluded() -> None:
    rois = [Roi("a", shapely.box(0, 0, 40, 40), "Tumor"), Roi("b", shapely.box(0, 0, 200, 40), "Fold", excluded=True)]
    assert rois_from_json(json.loads(json.dumps(rois_to_json(rois)))) == rois
    assert TileGrid(400, 400, 0.5, 100, 10).touching(rois) == [(0, 0)]
    earlier = rois_to_json([Roi("a", rois[0].outline_um)])
    assert set(earlier[0]) == {"name", "outline_um"}
    assert rois_from_json(earlier) == [Roi("a", rois[0].outline_um)]
