"""A mosaic with an attribute that is not ours is one clear error, whatever it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import rows, run
from making import mosaic_of, write_png

from wsiscore.cells.find import rules_of
from wsiscore.errors import MosaicError
from wsiscore.mosaic import Mosaic

NAN, HUGE = float("nan"), 10**400
MISSING = object()
WRONG: list[tuple[str, list[Any]]] = [
    ("channels", [None, "center", {}, [], ["center"] * 4, [1, 2, 3, 4], MISSING]),
    ("model", [None, "hdab", [], {"name": 1}, {"name": {"": None}}, MISSING]),
    ("output", [None, 1, [], MISSING]),
    ("identity", [None, {}, {"slide_sha256": ""}, "x", MISSING]),
    ("identity/slide_sha256", [None, 1, MISSING]),
    ("identity/batch_size", ["1", 1.5, True, NAN]),
    ("dab_ground_od", [None, "0.1", True, [], NAN, 1e300, -1, HUGE]),
    ("polarity", [1, []]),
    ("index_errors", [None, [], {"a": "x"}, {"a": NAN}, {"a": -1}]),
    ("index_errors_by_image", [[], {"a": 1}, {"a": [NAN]}, {"a": ["x"]}]),
    ("pink_share", ["x", NAN, -0.1, 2]),
    ("found", [None, [], {"a": NAN}]),
    ("measures", [1, ["focus"], "all"]),
    ("slide_size_px", [1, [1], [0, 1], ["a", "b"], [1.5, 2]]),
    ("stain", [{}, [], {"found": []}]),
    ("stain/dab", [[0, 0, 0], [NAN, 0, 1], [1e300, 0, 0], ["a", "b", "c"], [1]]),
    ("stain/white", [[0, 255, 255], [NAN] * 3]),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small finished mosaic with one cell."""
    maps = np.zeros((4, 40, 40))
    maps[0, 10, 10], maps[1] = 0.75, 1
    return mosaic_of(tmp_path_factory.mktemp("made") / "m.ome.zarr", maps, 32).path


def edit(mosaic: Path, name: str, value: Any) -> None:
    """Change a value in the attributes of a mosaic; `name` is its path."""
    *on_the_way, last = name.split("/")
    values = json.loads((mosaic / "zarr.json").read_text())
    at = values["attributes"]["wsiscore"]
    for key in on_the_way:
        at = at[int(key) if key.isdecimal() else key]
    if value is MISSING:
        del at[last]
    else:
        at[int(last) if last.isdecimal() else last] = value
    (mosaic / "zarr.json").write_text(json.dumps(values))


@pytest.mark.parametrize(("name", "values"), WRONG, ids=[name for name, _ in WRONG])
def test_a_foreign_attribute_is_named(made: Path, tmp_path: Path, name: str, values: list[Any]) -> None:
    for number, value in enumerate(values):
        mosaic = Path(shutil.copytree(made, tmp_path / f"{number}.ome.zarr"))
        edit(mosaic, name, value)
        with pytest.raises(
            MosaicError, match=f"its attribute '{name.split('/')[0]}' is .*; wanted .*. Copy the mosaic"
        ):
            Mosaic.open(mosaic)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("tiles/grid/mpp", 1e-9, "its mpp is 1e-09, wanted 0.02 to 200 µm/px"),
        ("tiles/grid/mpp", "x", "its mpp is 'x', wanted 0.02 to 200 µm/px"),
        ("tiles/slide_mpp", NAN, "its slide_mpp is nan, wanted 0.02 to 200 µm/px"),
        ("tiles/grid/tile_px", True, "its grid is not in whole pixels"),
        ("tiles/grid/width_px", 2**31, "which no slide has|the shape"),
        ("tiles/grid/height_px", 64, "the shape"),
        ("tiles/rois/0/outline_um/coordinates", [], "ROI 'all' is empty"),
        ("tiles/rois/0/outline_um/coordinates/0/0/0", -5, "ROI 'all' is no plain outline: it crosses itself"),
        ("rules/radius_um", 1e6, r"radius_um must be a number of µm in \(0, 50\], got 1000000.0"),
        ("rules/smooth_um", 1e6, r"smooth_um must be a number of µm in \[0, 20\], got 1000000.0"),
        ("rules/threshold", HUGE, r"threshold must be a number in \[0, 1\]"),
        ("output", "clouds", "holds maps of the kind 'clouds', wanted centers, components"),
        ("output", "components", "lacks the maps boundary"),
        ("channels", ["center", "positive", "negative", "x"], "lacks the maps dab_od"),
        ("channels", ["center", "positive", "negative", "dab_od", "x"], r"/0 has the shape \(4, 40, 40\), wanted \(5"),
        ("dab_ground_od", "x", "its attribute 'dab_ground_od'"),
    ],
)
def test_what_cannot_be_scored_says_why(made: Path, tmp_path: Path, name: str, value: Any, why: str) -> None:
    mosaic = Path(shutil.copytree(made, tmp_path / "m.ome.zarr"))
    edit(mosaic, name, value)
    with pytest.raises(MosaicError, match=why):
        rules_of(Mosaic.open(mosaic))


@pytest.mark.parametrize("name", ["dab_ground_od", "channels", "rules/radius_um"])
def test_a_foreign_attribute_is_the_row_of_the_slide(made: Path, tmp_path: Path, name: str) -> None:
    mosaic = Path(shutil.copytree(made, tmp_path / "m.ome.zarr"))
    edit(mosaic, "tiles/slide", str(write_png(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))))
    edit(mosaic, "tiles/slide_mpp", 0.5)
    edit(mosaic, name, [NAN])
    (row,) = rows(run("score", mosaic, "-o", tmp_path / "out"))
    assert row["call"].startswith(f"error: {mosaic}")
    assert name.split("/")[-1] in row["call"]
    assert not list(tmp_path.rglob("error.log"))


@pytest.mark.parametrize("chunk", [[0, 32, 32], [10**6, 32, 32], [4, 32, 33]])
def test_foreign_chunks_are_a_mosaic_error(made: Path, tmp_path: Path, chunk: list[int]) -> None:
    mosaic = Path(shutil.copytree(made, tmp_path / "m.ome.zarr"))
    about = json.loads((mosaic / "0" / "zarr.json").read_text())
    about["chunk_grid"]["configuration"]["chunk_shape"] = chunk
    (mosaic / "0" / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(MosaicError, match=r"/0 (is damaged|holds float16)"):
        Mosaic.open(mosaic)
