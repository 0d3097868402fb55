"""Aligned pictures: found, cropped alike, and trained on by a family that asks for them."""

import csv
import json
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from training_parts import run

from wsiscore.errors import ModelError, OutputError, SlideError
from wsiscore.models import registry
from wsiscore.models.card import read_card
from wsiscore.models.store import load_model
from wsiscore.synthetic.svs import write_svs
from wsiscore.training.loop import train
from wsiscore.training.pairs import AlignedFiles, PairTrainingData, find_aligned
from wsiscore.training.prepare import PairDatasetSettings, render_dataset
from wsiscore.training.record import LOSSES
from wsiscore.training.settings import TrainSettings


def plane(height=80, width=96, seed=0):
    """Return two pictures in which every pixel of one says what the other must be."""
    he = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return he, 255 - he


def write(path, rgb):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), rgb[..., ::-1])


@pytest.fixture
def folders(tmp_path):
    """Return a folder with he/ and ihc/ of five slides, some with two tiles."""
    for slide in range(5):
        for tile in range(1 + slide % 2):
            for name, rgb in zip(("he", "ihc"), plane(seed=10 * slide + tile), strict=True):
                write(tmp_path / "in" / name / f"s{slide}" / f"{tile}.png", rgb)
    return tmp_path / "in"


def grey(pictures):
    return {"grey": pictures["he"].mean(axis=2).astype(np.uint8), "two": pictures["ihc"][..., :2]}


def test_all_pictures_of_a_set_are_cropped_alike(folders):
    pairs = PairTrainingData(("he", "ihc"), tuple(find_aligned(folders, ("he", "ihc"))), derived=grey)
    sampler = pairs.sampler(None, batch=12, crop_px=48, seed=4, first=0)
    batch = sampler[7]
    assert {name: tuple(at.shape) for name, at in batch.items()} == {
        "he": (12, 3, 48, 48),
        "ihc": (12, 3, 48, 48),
        "grey": (12, 1, 48, 48),
        "two": (12, 2, 48, 48),
    }
    assert torch.equal(batch["ihc"], 255 - batch["he"])
    assert torch.equal(batch["two"], batch["ihc"][:, :2])
    assert torch.equal(batch["grey"][:, 0], batch["he"].double().mean(1).to(torch.uint8))
    assert torch.equal(sampler[7]["he"], batch["he"])
    assert not torch.equal(sampler[8]["he"], batch["he"])
    parts = [pairs.sampler(None, batch=6, crop_px=48, seed=4, first=first)[7]["he"] for first in (0, 6)]
    assert torch.equal(torch.cat(parts), batch["he"])


def test_strips_are_what_folders_are(tmp_path):
    for seed in range(3):
        he, ihc = plane(64, 64, seed)
        write(tmp_path / "strips" / f"{seed}.png", np.concatenate([he, ihc], axis=1))
        write(tmp_path / "folders" / "he" / f"{seed}.png", he)
        write(tmp_path / "folders" / "ihc" / f"{seed}.png", ihc)
    sampled = []
    for kind in ("strips", "folders"):
        found = find_aligned(tmp_path / kind, ("he", "ihc"))
        assert [one.slide for one in found] == ["0", "1", "2"]
        sampled.append(
            PairTrainingData(("he", "ihc"), tuple(found)).sampler(None, batch=4, crop_px=32, seed=0, first=0)[0]
        )
    for name in ("he", "ihc"):
        assert torch.equal(sampled[0][name], sampled[1][name])
    [one] = find_aligned(tmp_path / "strips" / "1.png", ("he", "ihc"))
    assert one.slide == "1"


def test_tiles_belong_to_the_folder_they_lie_in(folders):
    assert [one.slide for one in find_aligned(folders, ("he", "ihc"))] == ["s0", "s1", "s1", "s2", "s3", "s3", "s4"]


def test_what_is_not_aligned_is_refused(tmp_path):
    he, ihc = plane()
    for name, at in {"alone/he/a": he, "lone/he/a": he, "lone/ihc/b": ihc, "lone/he/b": he}.items():
        write(tmp_path / f"{name}.png", at)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "odd.png", he)
    for path, message in (("alone", "no ihc/"), ("lone", "0 files ihc/a"), ("empty", "no aligned pictures")):
        with pytest.raises(SlideError, match=message):
            find_aligned(tmp_path / path, ("he", "ihc"))
    with pytest.raises(SlideError, match="2 squares side by side: he, ihc"):
        AlignedFiles((tmp_path / "odd.png",), "odd").read(("he", "ihc"))
    write(tmp_path / "small.png", he[:40])
    with pytest.raises(SlideError, match=r"96 × 40 px, .* 96 × 80"):
        AlignedFiles((tmp_path / "odd.png", tmp_path / "small.png"), "odd").read(("he", "ihc"))
    pairs = PairTrainingData(("he", "ihc"), (AlignedFiles((tmp_path / "odd.png",) * 2, "odd"),))
    with pytest.raises(SlideError, match="at least 96 px a side"):
        pairs.sampler(None, batch=1, crop_px=96, seed=0, first=0)[0]


SETTINGS = PairDatasetSettings(fields=3, side_px=96, mpp=0.5, seed=3, stains=("he", "ihc", "segmentation"))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_dataset(tmp_path_factory.mktemp("rendered"), SETTINGS)


def test_a_rendered_dataset_of_pairs_is_aligned_and_the_same_again(rendered, tmp_path):
    again = render_dataset(tmp_path, SETTINGS)
    for number in range(3):
        rgb, cells = rendered.field(number)
        np.testing.assert_array_equal(rgb, rendered.array(number, "he"))
        mask = rendered.array(number, "segmentation")
        assert not mask[..., 2][cells > 0].any()  # no blue on positive nuclei
        assert not mask[..., 0][cells < 0].any()
        for name in SETTINGS.names:
            np.testing.assert_array_equal(rendered.array(number, name), again.array(number, name))
    with pytest.raises(OutputError, match="other settings"):
        render_dataset(tmp_path, replace(SETTINGS, stains=("he", "ihc")))


TINY = '''
"""A family that predicts one colour from another."""
from dataclasses import dataclass

import numpy as np
import torch

from wsiscore.models.contract import Family, GeneratorSpec

SPEC = GeneratorSpec("tinypair", ("red", "green", "blue"), mpp=0.5, tile_px=64, margin_px=8, multiple_px=8,
                     dtype="uint8")
PAIRS = ("he", "ihc")


@dataclass(frozen=True)
class Config:
    rate: float = 0.05


def derived(pictures):
    return {"grey": pictures["ihc"].mean(axis=2).astype(np.uint8)}


class Mixer:
    device = "cpu"

    def __init__(self, spec, weights):
        self.spec, self._weights = spec, weights

    def weights(self):
        return self._weights

    def __call__(self, tiles):
        light = np.einsum("oc,bchw->bohw", self._weights["mix"], tiles / np.float32(255))
        return np.clip(light, 0, 1).astype(np.float32)


def build(config, spec, weights, device):
    return Mixer(spec, dict(weights or {"mix": np.eye(3, dtype=np.float32)}))


class Recipe:
    targets = None
    multiple_px = 4

    def __init__(self, config, *, steps, seed, device, tiles, start):
        assert tiles is False
        self.mix = torch.eye(3, requires_grad=True)
        self.optimisers = [torch.optim.Adam([self.mix], config.rate)]

    def step(self, batch, number):
        assert set(batch) == {"he", "ihc", "grey"}
        loss = (torch.einsum("oc,bchw->bohw", self.mix, batch["he"] / 255) - batch["ihc"] / 255).abs().mean()
        self.optimisers[0].zero_grad()
        loss.backward()
        self.optimisers[0].step()
        return {"l1": loss.detach()}

    def state(self):
        return {"mix": self.mix.detach(), "adam": self.optimisers[0].state_dict()}

    def restore(self, state):
        self.mix.data = state["mix"]
        self.optimisers[0].load_state_dict(state["adam"])

    def weights(self):
        return {"mix": self.mix.detach().numpy().copy()}

    def show(self, batch):
        return {"he": batch["he"], "ihc": batch["ihc"]}


FAMILY = Family(name="tinypair", spec=SPEC, config=Config, build=build, recipe=Recipe, pairs=PAIRS, derived=derived)
'''


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Install a family that learns from pairs, for this test."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "tinypair.py").write_text(TINY)
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(registry, "_plugins", lambda: {"tinypair": "tinypair"})
    monkeypatch.delitem(sys.modules, "tinypair", raising=False)
    yield sys.modules["tinypair"] if registry.family("tinypair") else None
    sys.modules.pop("tinypair", None)


def losses(folder):
    with (folder / LOSSES).open() as file:
        return [float(row["l1"]) for row in csv.DictReader(file)]


def test_a_side_that_the_family_cannot_take_is_refused(tiny, rendered, tmp_path):
    with pytest.raises(ModelError, match="a multiple of 4 px, got 30 px; give another --crop"):
        train(
            tmp_path,
            TrainSettings("tinypair", {"rate": 0.1}, 1, 1, 30, 0),
            PairTrainingData(tiny.PAIRS, rendered=rendered),
            device="cpu",
        )


def test_a_training_continues_exactly_where_it_stopped(tiny, rendered, tmp_path, monkeypatch):
    pairs = PairTrainingData(tiny.PAIRS, rendered=rendered, derived=tiny.derived)
    settings_ = TrainSettings("tinypair", {"rate": 0.05}, steps=20, batch=2, crop_px=48, seed=1)
    whole = train(tmp_path / "whole", settings_, pairs, device="cpu", every=5)
    step = tiny.Recipe.step

    def stop(self, batch, number):
        if number == 12:
            raise KeyboardInterrupt
        return step(self, batch, number)

    monkeypatch.setattr(tiny.Recipe, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", settings_, pairs, device="cpu", every=5)
    monkeypatch.setattr(tiny.Recipe, "step", step)
    parts = train(tmp_path / "parts", settings_, pairs, device="cpu", every=5)
    np.testing.assert_array_equal(parts.weights()["mix"], whole.weights()["mix"])
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert not np.allclose(whole.weights()["mix"], np.eye(3), atol=0.1)
    with pytest.raises(OutputError, match="other data"):
        train(tmp_path / "whole", settings_, replace(pairs, derived=None, names=("ihc", "he")), device="cpu")


def train_tiny(*words):
    fixed = ("--steps", 1, "--batch", 1, "--crop", 32, "--fields", 2, "--workers", 0, "--device", "cpu")
    return run("train", "tinypair", *words, *fixed)


def test_the_command_trains_on_rendered_pairs_where_none_are_given(tiny, tmp_path):
    done = train_tiny("-o", tmp_path / "t")
    assert done.exit_code == 0, done.output
    card = read_card(tmp_path / "t" / "model")
    assert card.polarity is None
    assert "2 sets of aligned pictures (he, ihc), rendered" in card.trained_on
    assert load_model(tmp_path / "t" / "model", "cpu")(np.zeros((1, 3, 64, 64), np.uint8)).shape == (1, 3, 64, 64)
    assert (tmp_path / "t" / "sheets" / "000001.png").exists()
    text = run("train", "tinypair", "--help").stdout
    assert "he, ihc" in text
    assert "--masks" not in text
    assert "--masks" in run("train", "ihcscoregan", "--help").stdout


def test_no_case_of_aligned_pictures_is_on_both_sides(tiny, folders, tmp_path):
    cases = tmp_path / "cases.csv"
    cases.write_text("slide,case\n" + "".join(f"s{slide},c{slide // 2}\n" for slide in range(5)))
    words = [folders, "-o", tmp_path / "t", "--cases", cases, "--test-fraction", 0.4, "--tiles", 2]
    done = train_tiny(*words)
    assert done.exit_code == 0, done.output
    with (tmp_path / "t" / "split.csv").open() as file:
        sides = {}
        for row in csv.DictReader(file):
            sides.setdefault(f"c{int(row['slide'][1]) // 2}", set()).add(row["part"])
    assert all(len(parts) == 1 for parts in sides.values())
    assert set().union(*sides.values()) == {"train", "test"}
    assert "2 sets of aligned pictures (he, ihc), files" in read_card(tmp_path / "t" / "model").trained_on


def test_aligned_slides_are_cut_at_the_same_places(tiny, tmp_path):
    he = cv2.resize(np.random.default_rng(0).integers(60, 190, (8, 10, 3), np.uint8), (700, 560))
    ihc = cv2.resize(255 - he, (1400, 1120))  # scanned at twice the resolution
    for name, rgb, mpp in (("he", he, 0.5), ("ihc", ihc, 0.25)):
        (tmp_path / "in" / name).mkdir(parents=True)
        path = tmp_path / "in" / name / "a.svs"
        write_svs(path, lambda top, bottom, rgb=rgb: rgb[top:bottom], rgb.shape[1], rgb.shape[0], mpp, quality=95)
    box = {"type": "Polygon", "coordinates": [[[0, 0], [700, 0], [700, 560], [0, 560], [0, 0]]]}
    feature = {"type": "Feature", "geometry": box, "properties": {"name": "all"}}
    (tmp_path / "in" / "he" / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    done = train_tiny(tmp_path / "in", "-o", tmp_path / "t")
    assert done.exit_code == 0, done.output
    found = find_aligned(tmp_path / "t" / "tiles", ("he", "ihc"))
    assert len(found) >= 4
    assert {one.slide for one in found} == {"a"}
    for one in found:
        first, second = (picture[:48, :128].astype(int) for picture in one.read(("he", "ihc")))
        assert np.abs(first - (255 - second)).mean() < 4
    (tmp_path / "in" / "ihc" / "a.svs").unlink()
    assert train_tiny(tmp_path / "in", "-o", tmp_path / "u").exit_code == 1


def test_a_picture_that_cannot_be_rendered_must_be_given(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "FAMILY", replace(tiny.FAMILY, pairs=("he", "pas")))
    done = train_tiny("-o", tmp_path / "t")
    assert done.exit_code == 1
    assert "'pas' cannot be rendered" in done.output


@pytest.mark.shared
def test_published_strips_hold_six_aligned_pictures(shared):
    names = ("ihc", "hematoxylin", "dapi", "lap2", "marker", "segmentation")
    found = find_aligned(shared / "data" / "deepliif" / "pairs", names)
    assert [one.slide for one in found] == ["Bladder1", "Lung1"]
    batch = PairTrainingData(names, tuple(found)).sampler(None, batch=2, crop_px=256, seed=0, first=0)[0]
    cells = (batch["segmentation"].amax(1) > 128).numpy()
    assert (
        batch["dapi"].float().mean(1).numpy()[cells].mean() > batch["dapi"].float().mean(1).numpy()[~cells].mean() * 2
    )
