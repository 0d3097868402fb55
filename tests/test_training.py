"""The sampler and the training loop: the same steps from the same seed."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_parts import TINY, paths, settings_of, weights

from wsiscore.errors import ModelError, OutputError
from wsiscore.generators.ihcscoregan import Config
from wsiscore.generators.ihcscoregan.network import DualUNet
from wsiscore.generators.ihcscoregan.recipe import Recipe
from wsiscore.models.contract import TargetRules
from wsiscore.training.data import Sampler, TrainingData
from wsiscore.training.loop import train
from wsiscore.training.mask_files import MaskFiles
from wsiscore.training.record import CHECKPOINT, LOSSES
from wsiscore.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_batch_is_a_function_of_seed_and_step(dataset, tiles):
    sampler = Sampler(TrainingData(dataset, paths(tiles)), TargetRules(), batch=4, crop_px=64, seed=5)
    batch = sampler[9]
    assert {name: tuple(at.shape) for name, at in batch.items()} == dict.fromkeys(
        ("rgb", "maps", "colour", "tiles", "mask_colour", "mask_maps"), (4, 3, 64, 64)
    )
    assert all(at.dtype == torch.uint8 for at in batch.values())
    for name, at in replace(sampler)[9].items():
        assert torch.equal(at, batch[name])
    for other in (sampler[10], replace(sampler, seed=6)[9]):
        assert not torch.equal(other["rgb"], batch["rgb"])


def test_processes_sample_the_parts_of_one_batch(dataset):
    whole = Sampler(TrainingData(dataset), TargetRules(), batch=4, crop_px=32, seed=5)
    parts = [replace(whole, batch=2, first=first)[3]["rgb"] for first in (0, 2)]
    assert torch.equal(torch.cat(parts), whole[3]["rgb"])


def test_masks_are_unrelated_to_the_tile_and_follow_the_rule_of_the_paper(dataset, tiles):
    sampler = Sampler(TrainingData(dataset, paths(tiles)), TargetRules(), batch=8, crop_px=64, seed=0)
    batch = sampler[0]
    assert not torch.equal(batch["maps"], batch["mask_maps"])
    red, green = batch["mask_colour"][:, 0], batch["mask_colour"][:, 1]
    assert not (red.bool() & (batch["mask_maps"][:, 1] == 0)).any()
    assert not (green.bool() & (batch["mask_maps"][:, 2] == 0)).any()


def test_masks_come_from_files_where_there_are_any(dataset, tiles, tmp_path):
    labels = np.zeros((96, 96), np.int32)
    labels[40:56, 40:56] = 1
    np.save(tmp_path / "one.npy", labels)
    sampler = Sampler(
        TrainingData(dataset, paths(tiles), MaskFiles((tmp_path / "one.npy",), 0.5)),
        TargetRules(),
        batch=8,
        crop_px=64,
        seed=0,
    )
    fractions = (sampler[0]["mask_maps"][:, 1:] > 0).float().sum(1).mean((1, 2))
    assert ((fractions == 0) | (fractions < 0.15)).all()
    assert fractions.max() > 0.02


def test_a_warm_start_lowers_the_loss_on_rendered_fields(dataset, tmp_path):
    train(tmp_path, settings_of(40, batch=4, width=8, warm_rate=4e-3), TrainingData(dataset), device="cpu", every=40)
    with (tmp_path / LOSSES).open() as file:
        losses = [float(row["rendered_k"]) for row in csv.DictReader(file)]
    assert len(losses) == 40
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:5])
    assert (tmp_path / "sheets" / "000040.png").exists()


@pytest.mark.parametrize("ablation", [{}, {"detach": "none", "color_variation": False, "supervised": 10.0}])
def test_the_adversarial_stage_moves_every_network(ablation, dataset, tiles, tmp_path):
    before = Recipe(Config(**TINY, **ablation), steps=2, seed=1, device="cpu", tiles=True, start=None).state()
    train(tmp_path, settings_of(2, warm_fraction=0.0, **ablation), TrainingData(dataset, paths(tiles)), device="cpu")
    for name, value in weights(tmp_path).items():
        start = before["networks"][name].numpy()
        if name.endswith("bias") and np.array_equal(value, start):
            continue  # a bias before instance normalisation has no effect
        assert not np.array_equal(value, start), name
    with (tmp_path / LOSSES).open() as file:
        row = next(csv.DictReader(file))
    assert {"cycle", "adversarial", "identity", "discriminators"} <= set(row)
    assert ("supervised" in row) == ("supervised" in ablation)


@pytest.mark.parametrize(
    ("detach", "reaches"),
    [("all", set()), ("bottleneck", {"skips"}), ("none", {"skips", "bottleneck"})],
)
def test_where_the_gradient_of_the_k_branch_ends(detach, reaches):
    g = DualUNet(Config(width=4, blocks=1), detach)
    g(torch.randn(1, 3, 32, 32))[1].sum().backward()
    tail = any(p.grad is not None and p.grad.abs().sum() > 0 for p in g.encoder.tail.parameters())
    down = any(p.grad is not None and p.grad.abs().sum() > 0 for p in g.encoder.down.parameters())
    assert {name for name, there in (("bottleneck", tail), ("skips", down)) if there} == reaches
    assert all(p.grad is None for p in g.colour.parameters())


def test_other_settings_are_not_mixed_into_a_training(dataset, tmp_path):
    train(tmp_path, settings_of(1), TrainingData(dataset), device="cpu")
    with pytest.raises(OutputError, match="width 4, now 8"):
        train(tmp_path, settings_of(1, width=8), TrainingData(dataset), device="cpu")


def test_a_family_without_a_recipe_says_so(dataset, tmp_path):
    with pytest.raises(ModelError, match="cannot be trained"):
        train(tmp_path, TrainSettings("hdab", {}, 1, 1, 32, 0), TrainingData(dataset), device="cpu")


def test_a_mask_at_full_size_is_the_whole_picture_and_nothing_is_mirrored(dataset, tiles, tmp_path):
    labels = np.zeros((64, 64), np.int32)
    labels[2:10, 2:10] = 1  # in one corner
    np.save(tmp_path / "corner.npy", labels)
    masks = MaskFiles((tmp_path / "corner.npy",), 0.5)
    sampler = Sampler(TrainingData(dataset, paths(tiles), masks), TargetRules(), batch=16, crop_px=64, seed=0)
    maps = sampler[0]["mask_maps"]
    assert ((maps[:, 1:] > 0).sum((1, 2, 3)) == 64).all()
    assert (maps[:, 0].amax((1, 2)) > 200).all()


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(dataset, tmp_path):
    for held in ({"about": "{}", "step": 1, "recipe": {}}, [1, 2]):
        torch.save(held, tmp_path / CHECKPOINT)
        with pytest.raises(OutputError, match="not a checkpoint of this version"):
            train(tmp_path, settings_of(1), TrainingData(dataset), device="cpu")
