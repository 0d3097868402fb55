"""What a run finished stands, with its record, until another has finished."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wsiscore.errors import MosaicError
from wsiscore.models.card import Measurement, read_card
from wsiscore.models.store import find_model, write_model
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
    mosaic = tmp_path / "rendered" / "mosaic.ome.zarr"
    for path, chosen, quoted in (
        (rendered, settings, known),
        (mosaic, replace(settings, model=None), known),
        (mosaic, replace(settings, rules={"threshold": 0.9}), {}),
    ):
        score_slide(path, chosen)
        record = json.loads((tmp_path / "rendered" / "run.json").read_text(encoding="utf-8"))
        assert record["model"]["index_errors"] == quoted
    assert known
