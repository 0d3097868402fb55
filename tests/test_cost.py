"""The cost of a slide: a line through what two slides cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsiscore.pipeline import cost
from wsiscore.pipeline.options import ScoreOptions


def test_the_cost_is_that_of_a_run_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "SIDES_UM", (64, 192))
    monkeypatch.setattr(cost.tempfile, "tempdir", str(tmp_path))
    found = cost.measure_cost(
        ScoreOptions(model="hdab", roi_classes=("Tumour",), name="mine")
    )  # of the user's own slides
    assert found.model == "hdab"
    assert found.seconds_a_slide > 0
    assert found.mb_per_mm2 > 0
    assert found.seconds(30, 3) == pytest.approx(3 * found.seconds(10))
    assert found.megabytes(30) == pytest.approx(3 * found.megabytes(10))
    assert not list(tmp_path.iterdir())
