"""What a mosaic stores: codes within half a step, levels that are means, and no maps at all where none are wanted."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from making import Darkness, as_model, mosaic_of, whole, write_png

from wsiscore.cells.find import find_cells
from wsiscore.errors import MosaicError, OutputError
from wsiscore.inference import infer
from wsiscore.map_codes import DAB_CHANNEL, decode, encode
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.bottleneck import fractions, summary, time_left
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.pipeline.steps import score_slide
from wsiscore.slide.slide import Slide

CODES = np.arange(256, dtype=np.uint8)[None]


@pytest.mark.parametrize("channel", ["center", DAB_CHANNEL])
def test_a_code_is_that_of_its_value(channel: str) -> None:
    values = decode(CODES[None], [channel])[0]
    assert np.array_equal(encode(values, channel), CODES)
    assert (np.diff(values) > 0).all()
    assert (values[0, 0], values[0, -1]) == pytest.approx((0, 4 if channel == DAB_CHANNEL else 1))


@given(st.floats(0, 4, width=32))
def test_a_value_is_kept_within_half_a_step(value: float) -> None:
    plane = np.full((1, 1), value, np.float32)
    assert decode(encode(plane, DAB_CHANNEL)[None], [DAB_CHANNEL])[0] + 0.1 == pytest.approx(plane + 0.1, rel=0.0076)
    plane /= 4
    assert decode(encode(plane, "center")[None], ["center"])[0] == pytest.approx(plane, abs=0.501 / 255)


def test_more_density_than_there_is_a_code_for_is_the_last() -> None:
    assert encode(np.array([[3.99, 4.0, 9.0]], np.float32), DAB_CHANNEL).tolist() == [[255, 255, 255]]


def level_arrays(path: Path) -> list[npt.NDArray[np.generic]]:
    group = zarr.open_group(path, mode="r")
    return [np.asarray(group[str(level)][:]) for level in range(3)]


def test_the_levels_are_the_same_however_many_are_written_with_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rgb = np.random.default_rng(5).integers(0, 256, (155, 203, 3), np.uint8)
    slide, found = Slide(write_png(tmp_path / "a.png", rgb), mpp=0.5), []
    monkeypatch.setattr("wsiscore.pyramid._SHARD_PX", 96)
    monkeypatch.setattr("wsiscore.pyramid._SMALLEST_LEVEL_PX", 60)
    for number in range(3):
        monkeypatch.setattr("wsiscore.pyramid._WITH_SHARDS", number)
        path = tmp_path / f"{number}.ome.zarr"
        found.append(level_arrays(infer(slide, whole(102, 78), as_model(Darkness()), path).path))
    full = found[0][0].astype(float)
    full = np.pad(full, ((0, 0), (0, 1), (0, 1)), mode="edge")
    mean = full.reshape(len(full), 78, 2, 102, 2).mean(axis=(2, 4))
    assert found[0][1] == pytest.approx(mean, abs=0.51)
    for other in found[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_a_mosaic_of_half_floats_is_still_read(tmp_path: Path) -> None:
    maps = np.zeros((4, 40, 40))
    maps[0, 10, [5, 15]], maps[1], maps[3] = 0.75, 1, 0.3
    mosaic = mosaic_of(tmp_path / "m.zarr", maps, 32)
    about = tmp_path / "m.zarr" / "zarr.json"
    about.write_text(about.read_text().replace("wsiscore-mosaic-3", "wsiscore-mosaic-2"))
    cells = find_cells(Mosaic.open(mosaic.path))
    assert cells.confidence.tolist() == [0.75, 0.75]
    assert cells.dab_od == pytest.approx(np.float16(0.3))


def test_a_mosaic_that_cannot_be_begun_leaves_nothing(slide: Slide) -> None:
    folder, (soft, hard) = slide.path.parent, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            infer(slide, whole(200, 200), as_model(Darkness()), folder / "m.ome.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in folder.iterdir()) == [".locks", "slide.png"]


def test_a_slide_scored_without_keeping_maps_says_what_is_not_there(rendered: Path, tmp_path: Path) -> None:
    options = ScoreOptions(model="hdab", out=tmp_path / "out", keep="cells")
    score = score_slide(rendered, options)
    folder = tmp_path / "out" / "rendered"
    path = folder / "mosaic.ome.zarr"
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 100_000
    with pytest.raises(MosaicError, match="holds no maps, since --keep cells removed them; score the slide itself"):
        score_slide(path, ScoreOptions(out=tmp_path / "again"))
    assert score_slide(rendered, options) == score
    assert any(
        "they are computed again" in warning for warning in json.loads((folder / "run.json").read_text())["warnings"]
    )


@given(
    st.dictionaries(
        st.sampled_from(["infer: network", "infer: wait_for_reading", "cells", "write: report.html", "rois"]),
        st.floats(0, 1e4),
    ),
    st.floats(0.01, 1e5),
)
def test_all_of_the_time_went_somewhere(stages: dict[str, float], seconds: float) -> None:
    found = fractions(stages, seconds)
    parts = [found[part] for part in ("decode", "network", "write", "cells", "report", "other")]
    assert all(0 <= part <= 1 for part in parts)
    assert sum(parts) == pytest.approx(1, abs=0.004)


def test_the_last_line_names_the_bottleneck_first() -> None:
    slow = fractions({"infer": 40, "infer: network": 30, "infer: wait_for_reading": 10}, 50, tiles=400)
    quick = fractions({"infer": 5, "infer: network": 5}, 10, tiles=100)
    line = "2 slides in 60 s, 20 tiles/s; the time went to network 58 %, other 25 %, decode 17 %"
    assert summary([slow, quick], 60) == line
    assert time_left(2, 14, 60) == "2 of 14 slides done in 60 s; about 6 min left"
