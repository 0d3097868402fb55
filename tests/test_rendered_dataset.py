"""Rendered datasets: the same again from the same settings, completed where blocks are missing."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
from training_parts import DATASET

from wsiscore.errors import OutputError
from wsiscore.training.prepare import render_dataset


def test_a_dataset_is_the_same_again_and_is_completed(dataset, tmp_path):
    again = render_dataset(tmp_path, DATASET)
    (tmp_path / "00000.cells.npy").unlink()
    render_dataset(tmp_path, DATASET)
    for number in (0, 7, 15):
        for one, other in zip(dataset.field(number), again.field(number), strict=True):
            np.testing.assert_array_equal(one, other)
    with pytest.raises(OutputError, match=r"other settings \(seed 3, wanted 4\)"):
        render_dataset(tmp_path, replace(DATASET, seed=4))


def test_positives_of_a_dataset_are_browner_than_negatives(dataset):
    red_minus_blue = {1: [], -1: []}
    for number in range(len(dataset)):
        rgb, cells = dataset.field(number)
        for sign, values in red_minus_blue.items():
            values.extend((rgb[..., 0].astype(int) - rgb[..., 2])[np.sign(cells) == sign].tolist())
    assert np.mean(red_minus_blue[1]) > np.mean(red_minus_blue[-1]) + 20


def test_a_dataset_of_an_earlier_version_is_used_as_it_is(dataset, tmp_path):
    folder = shutil.copytree(dataset.folder, tmp_path / "pool")
    (folder / "dataset.json").unlink()
    (folder / "pool.json").write_text(json.dumps(asdict(DATASET)))
    (folder / ".00000.rgb.npy.killed.part").touch()
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.*") if path.name[0] != "."}
    render_dataset(folder, DATASET)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".locks"}
    assert after == before
    with pytest.raises(OutputError, match="other settings"):
        render_dataset(folder, replace(DATASET, fields=17))


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_broken_settings_of_a_dataset_are_one_clear_error(text, tmp_path):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(OutputError, match="no settings of a rendered dataset"):
        render_dataset(tmp_path, DATASET)


def test_the_settings_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(self, *args, **kwargs):
        with self.open("w") as file:
            file.write('{"fie')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        with pytest.raises(OutputError, match="No space left"):
            render_dataset(tmp_path, DATASET)
    assert {path.name for path in tmp_path.iterdir()} <= {".locks"}
