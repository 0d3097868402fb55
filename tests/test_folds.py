"""Splits: no case is on both sides, and the folds partition the cases whatever the seed of the training."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_parts import TINY, run

from wsiscore.errors import SlideError
from wsiscore.training.folds import SlideCase, slide_of_tile, split_by_case


@given(
    counts=st.lists(st.integers(1, 4), min_size=5, max_size=12),
    folds=st.integers(2, 5),
    seed=st.integers(0, 99),
    per_case=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_no_case_is_on_both_sides_and_the_folds_are_a_partition(counts, folds, seed, per_case):
    tiles = [Path(f"s{slide:02d}/tiles/{i}.png") for slide, n in enumerate(counts) for i in range(n)]
    cases = {f"s{slide:02d}": SlideCase(f"c{slide // per_case}") for slide in range(len(counts))}
    if len({case.name for case in cases.values()}) < folds:
        return
    kept = []
    for fold in range(folds):
        split = split_by_case(tiles, cases=cases, folds=folds, fold=fold, seed=seed)
        sides = [{cases[slide_of_tile(tile)].name for tile in side} for side in (split.train, split.test)]
        assert not sides[0] & sides[1]
        assert sorted(split.train + split.test) == sorted(tiles)
        kept += split.test
    assert sorted(kept) == sorted(tiles)


def test_a_chronological_split_keeps_the_latest_cases():
    tiles = [Path(f"s{slide}/tiles/0.png") for slide in range(10)]
    cases = {f"s{slide}": SlideCase(f"s{slide}", f"20{(slide * 7) % 10 + 10}-01-01") for slide in range(10)}
    split = split_by_case(tiles, cases=cases, order="chronological", test_fraction=0.28)
    assert len(split.test) == 3
    dates = [[cases[slide_of_tile(tile)].date for tile in side] for side in (split.train, split.test)]
    assert max(dates[0]) < min(dates[1])
    with pytest.raises(SlideError, match="no date"):
        split_by_case(tiles, order="chronological", test_fraction=0.28)
    with pytest.raises(SlideError, match="no line for slide"):
        split_by_case(tiles, cases={}, test_fraction=0.28)


def test_unique_tiles_are_as_many_as_asked_and_the_same_for_a_seed():
    tiles = [Path(f"s{i // 10}/tiles/{i}.png") for i in range(40)]
    split = split_by_case(tiles, unique=7, seed=1)
    assert len(set(split.train)) == 7
    assert split == split_by_case(tiles, unique=7, seed=1)
    assert split != split_by_case(tiles, unique=7, seed=2)


def split_of(folder, out, *words):
    """Run a training of one step, and return its slides (or tiles) by part."""
    fixed = ["--steps", 1, "--batch", 1, "--crop", 32, "--fields", 1, "--workers", 0, "--device", "cpu"]
    small = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = run("train", "ihcscoregan", folder, "-o", out, *fixed, *small, *words)
    assert done.exit_code == 0, done.output
    with (out / "split.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {part: {row["tile"] for row in rows if row["part"] == part} for part in ("train", "test")}


@pytest.fixture
def six_slides(tmp_path):
    """Return tiles of six slides, two each."""
    rng = np.random.default_rng(0)
    for slide in range(6):
        (tmp_path / "in" / f"s{slide}" / "tiles").mkdir(parents=True)
        for tile in range(2):
            rgb = rng.integers(0, 256, (40, 40, 3), np.uint8)
            assert cv2.imwrite(str(tmp_path / "in" / f"s{slide}" / "tiles" / f"{tile}.png"), rgb)
    return tmp_path / "in"


def test_the_test_sets_of_the_folds_partition_the_tiles_whatever_the_seed(six_slides, tmp_path):
    kept = []
    for fold, seed in ((0, 5), (1, 0), (2, 1)):
        words = ("--folds", 3, "--fold", fold, "--seed", seed)
        kept += split_of(six_slides, tmp_path / f"f{fold}", *words)["test"]
    assert sorted(kept) == sorted(str(path) for path in six_slides.rglob("*.png"))


def test_the_same_tiles_are_trained_on_with_several_seeds(six_slides, tmp_path):
    splits = [split_of(six_slides, tmp_path / f"t{seed}", "--tiles", 5, "--seed", seed) for seed in (0, 1)]
    assert splits[0] == splits[1]
    assert len(splits[0]["train"]) == 5
    other = split_of(six_slides, tmp_path / "other", "--tiles", 5, "--split-seed", 1)
    assert other != splits[0]


def test_the_earlier_name_of_the_test_fraction_is_read(six_slides, tmp_path):
    new = split_of(six_slides, tmp_path / "new", "--test-fraction", 0.5)
    assert split_of(six_slides, tmp_path / "old", "--test-share", 0.5) == new
    assert len(new["test"]) == 6
