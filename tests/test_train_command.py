"""``wsiscore train``: a model that runs, the options of the family in the help, wrong options refused."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_parts import TINY, run

from wsiscore.models.card import read_card
from wsiscore.models.store import load_model
from wsiscore.training.processes import automatic_threads


def test_the_command_trains_a_model_that_runs(tiles, tmp_path):
    words = ["train", "ihcscoregan", tiles, "-o", tmp_path / "t", "--steps", 2, "--batch", 1, "--crop", 32]
    words += ["--fields", 2, "--workers", 0, "--device", "cpu", "--test-fraction", 0.5, "--tiles", 2]
    words += [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    done = run(*words)
    assert done.exit_code == 0, done.output
    folder = Path(done.stdout.strip())
    card = read_card(folder)
    assert card.name == "t"
    assert card.config["width"] == 4
    assert "2 unlabelled tiles" in card.trained_on
    maps = load_model(folder, "cpu")(np.full((1, 3, 64, 64), 200, np.uint8))
    assert maps.shape == (1, 3, 64, 64)
    with (tmp_path / "t" / "split.csv").open() as file:
        parts = {(row["slide"], row["part"]) for row in csv.DictReader(file)}
    assert {part for _, part in parts} == {"train", "test"}
    assert len({slide for slide, _ in parts}) == len(parts)
    again = run(
        "train",
        "ihcscoregan",
        "--start",
        folder,
        "-o",
        tmp_path / "u",
        "--steps",
        1,
        "--batch",
        1,
        "--crop",
        32,
        "--fields",
        2,
        "--workers",
        0,
        "--device",
        "cpu",
    )
    assert again.exit_code == 0, again.output
    assert json.loads((tmp_path / "u" / "model" / "card.json").read_text())["config"]["width"] == 4


def test_the_help_lists_the_options_of_the_family():
    text = run("train", "ihcscoregan", "--help").stdout
    for name in ("width=64", "detach='all'", "cycle=10.0", "color_variation=True"):
        assert name in text
    families = run("train", "--help").stdout
    assert "ihcscoregan" in families
    assert "hdab" not in families
    assert run("train", "hdab", "-o", "x").exit_code == 2


@pytest.mark.parametrize("setting", ["depth=3", "width=wide", "detach=some", "width", "warm_fraction=2"])
def test_a_wrong_option_is_a_usage_error(setting, tmp_path):
    done = run("train", "ihcscoregan", "-o", tmp_path, "--set", setting)
    assert done.exit_code == 2
    assert "--set" in done.output


def test_earlier_names_of_options_are_hidden_but_read(tmp_path):
    text = run("train", "ihcscoregan", "--help").stdout
    assert "--cache" in text
    assert "--pool" not in text
    assert "--test-share" not in text
    small = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["--steps", 1, "--batch", 1, "--crop", 32, "--fields", 1, "--workers", 0, "--device", "cpu", *small]
    done = run("train", "ihcscoregan", "-o", tmp_path / "t", "--pool", tmp_path / "fields", *words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "fields" / "dataset.json").exists()
    assert not (tmp_path / "t" / "cache").exists()
    again = run("train", "ihcscoregan", "-o", tmp_path / "u", "--cache", tmp_path / "fields", "--seed", 1, *words)
    assert again.exit_code == 1
    assert "seed 0, wanted 1" in again.output
    seeds = ("--seed", 1, "--fields-seed", 0)
    again = run("train", "ihcscoregan", "-o", tmp_path / "u", "--cache", tmp_path / "fields", *seeds, *words)
    assert again.exit_code == 0, again.output


def test_threads_are_those_asked_for(tmp_path, one_thread, monkeypatch):
    small = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["--steps", 1, "--batch", 1, "--crop", 32, "--fields", 1, "--workers", 0, "--device", "cpu", *small]
    assert run("train", "ihcscoregan", "-o", tmp_path / "t", "--threads", 2, *words).exit_code == 0
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("cores", "workers", "wanted"), [(1, 1, 1), (2, 0, 1), (4, 1, 3), (16, 1, 8), (16, 12, 4)])
def test_automatic_threads_leave_cores_to_the_workers(cores, workers, wanted, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert automatic_threads(workers) == wanted
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    assert automatic_threads(workers) == 1
