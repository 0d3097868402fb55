"""Trainings that end early: after a signal there is a checkpoint, and the resumed training gives the same bytes."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from training_parts import TINY, paths, program, settings_of, weights

from wsiscore.training.data import TrainingData
from wsiscore.training.interrupts import TrainingInterruptedError
from wsiscore.training.loop import train
from wsiscore.training.record import CHECKPOINT, LOSSES

pytestmark = pytest.mark.usefixtures("one_thread")


def start(code, folder):
    return subprocess.run([sys.executable, "-c", code, str(folder)], check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def whole(dataset, tiles, tmp_path_factory):
    """Return the folder of an uninterrupted training of nine steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    train(folder, settings_of(9), TrainingData(dataset, paths(tiles)), device="cpu", every=3)
    torch.set_num_threads(before)
    return folder


def assert_same(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)
    assert (one / LOSSES).read_bytes() == (other / LOSSES).read_bytes()


def test_a_killed_training_continues_to_the_same_weights(whole, dataset, tiles, tmp_path):
    done = start(program(dataset, tiles, 9, before="training_parts.die_after(5)"), tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3
    assert start(program(dataset, tiles, 9), tmp_path).returncode == 0
    assert_same(whole, tmp_path)


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 1)])
def test_a_signal_ends_the_training_with_a_checkpoint(number, workers, whole, dataset, tiles, tmp_path):
    before = f"training_parts.signal_after(4, {int(number)})"
    done = start(program(dataset, tiles, 9, before=before, workers=workers), tmp_path)
    assert done.returncode == 1
    assert f"{number.name}: the training ended after step 5 of 9" in done.stderr
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 5
    assert not list(tmp_path.rglob(".*.part"))
    assert start(program(dataset, tiles, 9, workers=workers), tmp_path).returncode == 0
    assert_same(whole, tmp_path)
    assert {path.name for path in tmp_path.rglob("*.png")} == {path.name for path in whole.rglob("*.png")}


def test_handlers_of_signals_are_left_as_they_were(dataset, tiles, tmp_path, monkeypatch):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr("training_parts.Recipe.step", lambda *_: signal.raise_signal(signal.SIGTERM) or {})
    with pytest.raises(TrainingInterruptedError, match="after step 1 of 3"):
        train(tmp_path, settings_of(3), TrainingData(dataset, paths(tiles)), device="cpu")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_leaves_with_one_line_and_the_status_of_the_signal(number, status, tmp_path):
    """A terminal and a cluster send the signal to all processes at once, those that sample included."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import training_parts\n"
        f"from wsiscore.cli import main; training_parts.signal_after(2, {int(number)}, group=True); sys.exit(main())"
    )
    small = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    fixed = ["--batch", 1, "--crop", 32, "--fields", 1, "--device", "cpu", "--steps", 9, "--workers", 1]
    line = [sys.executable, "-c", code, "train", "ihcscoregan", "-o", tmp_path, *fixed, *small]
    done = subprocess.run(
        [str(word) for word in line], check=False, capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    wanted = f"Stopped by {number.name}: the training ended after step 3 of 9; give the same command again to continue"
    assert done.stderr.splitlines() == [wanted]
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 3
