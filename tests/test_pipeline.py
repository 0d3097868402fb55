"""What a run finished stands, with its record, until another has finished."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsiscore.errors import MosaicError, SlideError
from wsiscore.models.card import Measurement, read_card
from wsiscore.models.store import find_model, write_model
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.job import out_of, stem_of
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import score_slide


def small_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_refused_run_leaves_the_record_of_the_finished_one(rendered: Path, tmp_path: Path) -> None:
    settings = ScoreOptions(model="hdab", out=tmp_path)
    score_slide(rendered, settings)
    before = small_files(tmp_path / "rendered")
    for other in (replace(settings, tile_px=256), replace(settings, model="ihcscoregan")):
        with pytest.raises(MosaicError, match="other settings"):
            score_slide(rendered, other)
        assert small_files(tmp_path / "rendered") == before


@pytest.mark.parametrize("name", ["tiles.json", "mosaic.ome.zarr"])
def test_what_was_laid_keeps_its_resolution(rendered: Path, tmp_path: Path, name: str) -> None:
    settings = ScoreOptions(model="hdab", out=tmp_path)
    score_slide(rendered, settings)
    with pytest.raises(MosaicError, match=r"at 0\.25 µm/px; to use --mpp, start from the slide"):
        score_slide(tmp_path / "rendered" / name, replace(settings, mpp=0.5))


def test_the_record_quotes_the_card_where_it_was_followed(rendered: Path, tmp_path: Path) -> None:
    card = read_card(find_model("hdab"))
    tested = Measurement("a set", "mean absolute error of the index, points", 3.5, "by hand")
    write_model(tmp_path / "model", replace(card, tested_on=(tested,)), None)
    known = {"a set": 3.5}
    settings = ScoreOptions(model=str(tmp_path / "model"), out=tmp_path)
    mosaic, edited = tmp_path / "rendered" / "mosaic.ome.zarr", tmp_path / "edited.geojson"
    for path, chosen, quoted in (
        (rendered, settings, known),
        (mosaic, replace(settings, model=None, cells=edited, author="A"), known),  # one edit does not make it certain
        (mosaic, replace(settings, rules={"threshold": 0.9}, force=True), {}),
    ):
        score = score_slide(path, chosen)
        assert (score.edits.total if score.edits else 0) == (chosen.cells is not None)
        cells = (tmp_path / "rendered" / "cells.geojson").read_text(encoding="ascii")
        edited.write_text(cells.replace('"Positive"', '"Negative"', 1))
        record = json.loads((tmp_path / "rendered" / "run.json").read_text(encoding="utf-8"))
        assert record["model"]["index_errors"] == quoted
    assert known


def _box(path: Path, left: int, right: int) -> Path:
    square = [[left, 200], [right, 200], [right, 1400], [left, 1400], [left, 200]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    return path


def test_other_regions_keep_the_finished_tiles(rendered: Path, tmp_path: Path) -> None:
    """First the left half, then the right: what was written for the left stays, byte for byte, and can be scored."""
    left, right = _box(tmp_path / "left.geojson", 200, 600), _box(tmp_path / "right.geojson", 400, 1600)
    settings = ScoreOptions(model="hdab", out=tmp_path / "out", tile_px=256)
    before = score_slide(rendered, replace(settings, roi=left))
    mosaic = Mosaic.open(tmp_path / "out" / "rendered" / "mosaic.ome.zarr")
    listed = set(mosaic.tiles.tiles)
    maps = {place: mosaic.read(*_where(mosaic, place)) for place in listed}
    score_slide(rendered, replace(settings, roi=right))
    grown = Mosaic.open(mosaic.path)
    assert grown.complete
    assert set(grown.tiles.tiles) > listed
    for place, was in maps.items():
        assert np.array_equal(grown.read(*_where(grown, place)), was)
    assert [roi.outline_um.bounds for roi in grown.tiles.rois] == [(100, 50, 400, 350)]
    again = score_slide(rendered, replace(settings, roi=left))
    assert again == before
    assert set(Mosaic.open(mosaic.path).tiles.tiles) == set(grown.tiles.tiles)


def _where(mosaic: Mosaic, place: tuple[int, int]) -> tuple[int, int, int, int]:
    at = mosaic.grid.tile(*place).write
    return at.x, at.y, at.width, at.height


def test_a_moved_slide_is_recognised_by_its_hash(rendered: Path, tmp_path: Path) -> None:
    settings = ScoreOptions(model="hdab", out=tmp_path / "out")
    (tmp_path / "new").mkdir()
    old = tmp_path / rendered.name
    shutil.copy(rendered, old)
    shutil.copy(rendered.with_suffix(".geojson"), old.with_suffix(".geojson"))
    before = score_slide(old, settings)
    new, roi = (path.rename(tmp_path / "new" / path.name) for path in (old, old.with_suffix(".geojson")))
    with pytest.raises(SlideError, match="say where it is with --slide"):
        score_slide(tmp_path / "out" / "rendered" / "mosaic.ome.zarr", replace(settings, model=None))
    mosaic = tmp_path / "out" / "rendered" / "mosaic.ome.zarr"
    by_mosaic = score_slide(mosaic, replace(settings, model=None, slide=new))
    assert by_mosaic == replace(before, path=str(new))
    assert score_slide(new, settings) == by_mosaic
    assert roi.exists()
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == ["rendered"]


@pytest.mark.parametrize(
    "name", ["tiles.json", "mosaic.ome.zarr", "../slide/mosaic.ome.zarr", "../../out/slide/tiles.json"]
)
def test_results_go_beside_what_is_given_from_its_own_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out" / "slide").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "slide")
    assert stem_of(Path(name)) == "slide"
    assert out_of(Path(name), ScoreOptions()).resolve() == tmp_path / "out"
