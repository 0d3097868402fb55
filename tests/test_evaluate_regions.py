"""Evaluation of cells inside regions."""

import json

import pytest
from annotated import NEG, ONE, OUT, POS, TWO, cells, feature, true_cells, write_found
from click.testing import CliRunner
from hypothesis import given

from wsiscore.cli import main
from wsiscore.errors import TruthError
from wsiscore.evaluation import evaluate_cells
from wsiscore.evaluation.detection.measures import Detection, compare_cells
from wsiscore.evaluation.detection.rois import inside_regions


def box(left, right):
    corners = [[left, -5], [right, -5], [right, 5], [left, 5], [left, -5]]
    return feature({"type": "Polygon", "coordinates": [corners]}, "Tumor")


@pytest.fixture
def regional(tmp_path):
    """Write the cells of image one, in pixels of 0.5 µm, and the region from 20 to 60 µm beside them."""
    write_found(tmp_path / "out" / "one" / "cells.parquet", ONE[0])
    names = {POS: "positive", NEG: "negative"}
    pairs = zip(ONE[1].xy_um.tolist(), ONE[1].kind.tolist(), strict=True)
    lines = [f"{names[kind]},{x * 2},{y * 2}" for (x, y), kind in pairs if kind in names]
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "one.csv").write_text("\n".join(["class,x,y", *lines]) + "\n")
    (tmp_path / "truth" / "one.geojson").write_text(json.dumps([box(40, 120)]))
    return tmp_path


def test_cells_outside_the_regions_are_left_out(regional):
    # Inside are true B+ 30, C- 50 and found - 34, - 50: TP 2, one of the right class; true index 50, found 0.
    truth = regional / "truth"
    args = ["evaluate", "cells", f"{regional}/out", "--truth", str(truth), "--mpp", "0.5", "--regions"]
    for regions in (truth, truth / "one.geojson"):
        result = CliRunner().invoke(main, [*args, str(regions)], catch_exceptions=False)
        header, row, _ = (line.split("\t") for line in result.stdout.splitlines())
        values = dict(zip(header, row, strict=True))
        wanted = {
            "tp": "2",
            "fp": "0",
            "fn": "0",
            "class_accuracy": "0.500",
            "true_index": "50.0",
            "found_index": "0.0",
        }
        assert values | wanted == values


@given(cells, true_cells([NEG, POS, OUT]))
def test_a_region_of_everything_changes_nothing_and_one_of_nothing_leaves_nothing(tmp_path_factory, found, truth):
    folder = tmp_path_factory.mktemp("regions")
    square = [[-9, -9], [99, -9], [99, 99], [-9, 99], [-9, -9]]
    for name, shift in (("all", 0), ("none", 500)):
        corners = [[x + shift, y] for x, y in square]
        document = feature({"type": "Polygon", "coordinates": [corners]}, "Tumor")
        (folder / f"{name}.geojson").write_text(json.dumps(document))
    inside = [inside_regions(folder / "all.geojson", points.xy_um, 1.0) for points in (found, truth)]
    assert all(mask.all() for mask in inside)
    outside = [inside_regions(folder / "none.geojson", points.xy_um, 1.0) for points in (found, truth)]
    image = compare_cells("x", found.select(outside[0]), truth.select(outside[1]), 6)
    assert (image.detection, image.n_excluded) == (Detection(), 0)


def test_regions_must_be_there_and_be_one_and_have_a_scale(regional, caplog):
    truth, out = regional / "truth", [regional / "out"]
    with pytest.raises(TruthError, match=r"all of one image.*--regions"):
        evaluate_cells(out, truth, mpp=0.5)
    with pytest.raises(TruthError, match="does not exist; --regions"):
        evaluate_cells(out, truth, mpp=0.5, regions=regional / "nowhere")
    with pytest.raises(TruthError, match="regions for none of one"):
        evaluate_cells(out, truth, mpp=0.5, regions=regional / "out")
    (truth / "one.csv").write_text("x_um,y_um,class\n1,1,positive\n")
    with pytest.raises(TruthError, match=r"one\.geojson has coordinates in pixels"):
        evaluate_cells(out, truth, regions=truth)
    write_found(regional / "out" / "two" / "cells.parquet", TWO[0])
    (truth / "two.csv").write_text("x_um,y_um,class\n1,1,positive\n")
    rows = evaluate_cells(out, truth, mpp=0.5, regions=truth)
    assert [row[0] for row in rows[1:]] == ["one", "total"]
    assert "left out, no regions (1): two" in caplog.text
    (truth / "one.xml").write_text("<Annotations/>")
    with pytest.raises(TruthError, match="both regions of one"):
        evaluate_cells(out, truth, mpp=0.5, regions=truth)
