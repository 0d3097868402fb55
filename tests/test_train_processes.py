"""Trainings under torchrun: one writer, equal networks, and the number of processes is a setting."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_parts import TINY, keep_gradients, paths, program, settings_of

from wsiscore.errors import OutputError
from wsiscore.networks.learner import Learner
from wsiscore.training.data import TrainingData
from wsiscore.training.loop import train
from wsiscore.training.processes import Processes
from wsiscore.training.record import CHECKPOINT

pytestmark = pytest.mark.usefixtures("one_thread")


def torchrun(script, *words):
    line = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *words]
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    line = [sys.executable, *(str(word) for word in line)]
    return subprocess.run(line, check=False, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def two(dataset, tiles, tmp_path_factory):
    """Return the folder of a training of four steps by two processes."""
    folder = tmp_path_factory.mktemp("two")
    before = f"training_parts.keep_gradients(Path({str(folder / 'both')!r}))"
    (folder / "two.py").write_text(program(dataset, tiles, 4, batch=1, before=before))
    done = torchrun(folder / "two.py", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out"


def test_the_step_of_two_processes_takes_the_mean_of_their_gradients(two, dataset, tiles, tmp_path):
    """To the last bit: a sum of two numbers is rounded once, its half not at all; the first has that of one alone."""
    keep_gradients(tmp_path / "one")
    train(tmp_path / "out", settings_of(4, batch=1), TrainingData(dataset, paths(tiles)), device="cpu")
    one, first, second = (
        np.load(path) for path in (tmp_path / "one-0.npy", *(two.parent / f"both-own-{rank}.npy" for rank in (0, 1)))
    )
    np.testing.assert_array_equal(first, one)
    assert (second != first).any()
    for rank in (0, 1):
        np.testing.assert_array_equal(np.load(two.parent / f"both-{rank}.npy"), (first + second) / 2)


def test_another_number_of_processes_is_refused(two, dataset, tiles):
    with pytest.raises(OutputError, match="processes 2, now 1"):
        train(two, settings_of(4, batch=1), TrainingData(dataset, paths(tiles)), device="cpu")


_WRITES = """
import os, sys
from pathlib import Path
from wsiscore.cli import main
events = set()
def audit(event, args):
    if event == "os.rename" and str(args[1]).startswith(sys.argv[1]):
        with open(f"{sys.argv[1]}.{os.environ['RANK']}", "a") as file:
            file.write(f"{args[1]}\\n")
if __name__ == "__main__":
    sys.addaudithook(audit)
    main(sys.argv[2:])
"""


def test_only_the_first_process_writes(tmp_path):
    (tmp_path / "w.py").write_text(_WRITES)
    small = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["--steps", 2, "--batch", 1, "--crop", 32, "--fields", 2, "--workers", 0, "--device", "cpu", *small]
    out = tmp_path / "out"
    done = torchrun(tmp_path / "w.py", out, "train", "ihcscoregan", "-o", out, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out / "model")]
    written = {Path(line).name for line in Path(f"{out}.0").read_text().split()}
    assert {"checkpoint.pt", "losses.csv", "card.json", "weights.safetensors", "dataset.json"} <= written
    assert not Path(f"{out}.1").exists()


_BATCH_NORM = """
import sys
from pathlib import Path
import torch
from torch import nn
from wsiscore.networks.learner import Learner
from wsiscore.training.processes import join_processes
class Normed(Learner):
    def __init__(self):
        torch.manual_seed(0)
        self.networks = nn.ModuleDict({"g": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))})
if __name__ == "__main__":
    with join_processes("cpu") as processes:
        recipe = Normed()
        buffers = processes.synchronise(recipe)
        torch.manual_seed(processes.rank)
        recipe.networks["g"](torch.randn(2, 3, 8, 8))
        processes.average(buffers)
        torch.save(recipe.networks.state_dict(), Path(sys.argv[1]) / f"{processes.rank}.pt")
"""


def test_running_statistics_are_those_of_all_processes(tmp_path):
    (tmp_path / "bn.py").write_text(_BATCH_NORM)
    done = torchrun(tmp_path / "bn.py", tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["g.1.running_mean"].abs().sum() > 0
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_on_a_gpu_batch_normalisation_is_synchronised_and_keeps_its_weights():
    class Normed(Learner):
        def __init__(self):
            self.networks = nn.ModuleDict({"g": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))})

    recipe = Normed()
    before = list(recipe.networks.parameters())
    assert Processes(0, 2, "cuda:0").synchronise(recipe) == []
    assert isinstance(recipe.networks["g"][1], nn.SyncBatchNorm)
    assert all(one is other for one, other in zip(before, recipe.networks.parameters(), strict=True))


def test_a_signal_to_one_process_ends_all_with_a_checkpoint(dataset, tiles, tmp_path):
    before = "training_parts.signal_after(1, 15, rank='1')"
    (tmp_path / "two.py").write_text(program(dataset, tiles, 9, batch=1, before=before))
    done = torchrun(tmp_path / "two.py", tmp_path / "out")
    assert done.returncode != 0
    assert torch.load(tmp_path / "out" / CHECKPOINT, weights_only=True)["step"] == 2
    (tmp_path / "two.py").write_text(program(dataset, tiles, 9, batch=1))
    done = torchrun(tmp_path / "two.py", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "out" / CHECKPOINT, weights_only=True)["step"] == 9
