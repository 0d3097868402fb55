"""DeepLIIF: parity with the published program, selection of networks, files and training."""

import io
import pickle
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import tissue

from wsiscore.errors import ModelError
from wsiscore.generators.deepliif import (
    PAIRS,
    SPEC,
    Config,
    Networks,
    Recipe,
    build,
    more_positive,
    nearly_empty,
    read_published,
)
from wsiscore.networks.blocks import ResNet, SampleNorm, UNet
from wsiscore.networks.checkpoints import read_in_order
from wsiscore.networks.cpu import optimise_for_cpu
from wsiscore.networks.generator import initialised

SMALL = Config(width=2, downsamplings=5, blocks=1, discriminator_width=2)
SMALL_SPEC = replace(SPEC, multiple_px=32)
NEEDED_SPEC = replace(SMALL_SPEC, channels=SPEC.needed)
PICTURES = {"segmentation": "G5", "hematoxylin": "G1", "dapi": "G2", "lap2": "G3", "marker": "G4"}


@pytest.fixture(scope="module")
def published(shared):
    return shared / "parity" / "deepliif"


@pytest.fixture(scope="module")
def from_archives(published, tmp_path_factory):
    """Return the folder with the TorchScript archives alone."""
    folder = tmp_path_factory.mktemp("archives")
    for file in [*published.glob("G*.pt"), published / "train_opt.txt"]:
        shutil.copy(file, folder)
    return read_published(folder)


@pytest.mark.shared
def test_maps_equal_the_published_ones_alone_and_in_a_batch(published):
    with np.load(published / "expected.npz") as arrays:
        expected = {name: arrays[name].astype(np.float32) for name in arrays.files}
    config, weights = read_published(published)
    generator = build(config, SPEC, weights, "cpu")
    tiles = np.ascontiguousarray(expected["input_rgb"].astype(np.uint8).transpose(0, 3, 1, 2))
    maps = generator(tiles)
    tanh = maps * 2 - 1
    for index, name in enumerate(PICTURES.values()):
        assert np.abs(tanh[:, 3 * index : 3 * index + 3] - expected[name]).max() <= 2e-3
    np.testing.assert_array_equal(generator(tiles[1:]), maps[1:])
    assert list(config.weights().values()) == pytest.approx(expected["seg_weights"])


@pytest.mark.shared
def test_archives_and_state_dicts_give_the_same_weights(published, from_archives):
    config, weights = read_published(published)
    assert config == from_archives[0] == Config(width=4)
    assert weights.keys() == from_archives[1].keys()
    assert all(np.array_equal(value, from_archives[1][name]) for name, value in weights.items())


@pytest.mark.shared
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "train_opt.txt").unlink(), r"train_opt\.txt cannot be read"),
        (lambda folder: (folder / "G3.pt").unlink(), r"neither latest_net_G3\.pth nor G3\.pt"),
        (lambda folder: shutil.copy(folder / "G51.pt", folder / "G1.pt"), r"G1\.pt is not the network .* wanted"),
        (lambda folder: (folder / "G2.pt").write_bytes((folder / "G2.pt").read_bytes()[:9000]), "damaged"),
        (lambda folder: (folder / "G2.pt").write_text("not weights"), "not a torch checkpoint"),
        (lambda folder: (folder / "train_opt.txt").write_text("model: SDG\nngf: 4"), "describes no DeepLIIF"),
        (lambda folder: (folder / "train_opt.txt").write_text("ngf: wide"), "describes no DeepLIIF"),
        (lambda folder: (folder / "train_opt.txt").write_text("ngf: 8"), r"is \(4, 3, 7, 7\), wanted \(8, 3, 7, 7\)"),
        (lambda folder: torch.save({"a": {}}, folder / "G1.pt"), "no plain weights"),
        (lambda folder: (folder / "G1.pt").write_bytes(pickle.dumps(print)), "code"),
        (lambda folder: change_archive(folder / "G1.pt", pickle.dumps(print)), r"holds code \(builtins\.print\)"),
    ],
)
def test_unusable_folders_are_refused_in_one_line(published, tmp_path, damage, message):
    for file in [*published.glob("G*.pt"), published / "train_opt.txt"]:
        shutil.copy(file, tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match=message) as error:
        read_published(tmp_path)
    assert "\n" not in str(error.value)


def change_archive(path, tree):
    """Put another pickle into a TorchScript archive."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, tree if name.endswith("/data.pkl") else old.read(name))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_an_archive_is_read_without_running_its_program(tmp_path):
    """Its loading hook would set the weight to 7."""

    class Changed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        @torch.jit.export
        def __getstate__(self):
            return (self.weight, self.training)

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, bool]):
            self.weight = torch.full([3], 7.0)
            self.training = state[1]

        def forward(self, x):
            return x * self.weight

    module = torch.jit.script(Changed())
    torch.jit.save(module, path := tmp_path / "G1.pt")
    assert torch.jit.load(path).weight.tolist() == [7, 7, 7]
    with pytest.raises(ModelError, match="damaged TorchScript archive"):
        read_in_order(path, {"weight": (3,)}, "it")


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
def test_a_network_optimised_for_cpu_gives_the_same_output(padding):
    kind = {"norm": SampleNorm, "dropout": 0.5, "bias": False}
    picture = torch.rand(2, 3, 128, 128) * 2 - 1
    for make in (lambda: ResNet(16, blocks=3, padding=padding, **kind), lambda: UNet(8, 6, **kind)):
        network = initialised(make).eval()
        with torch.inference_mode():
            before = network(picture)
            names = list(network.state_dict())
            optimise_for_cpu(network)
            np.testing.assert_allclose(network(picture), before, atol=2e-4)
            rows_last = network(picture.contiguous(memory_format=torch.channels_last))
            np.testing.assert_allclose(rows_last, before, atol=2e-4)
        assert list(network.state_dict()) == names


def runs(generator):
    """Return which networks run, by counting their calls."""
    calls = []
    for kind in ("translators", "segmenters"):
        for name, network in getattr(generator._network, kind).items():
            network.register_forward_hook(lambda *_, label=f"{kind}.{name}": calls.append(label))
    generator(tissue(1, 64, 64))
    return set(calls)


def test_only_the_networks_of_the_requested_channels_run():
    everything = {f"translators.{name}" for name in PAIRS[1:5]} | {f"segmenters.{name}" for name in PAIRS[:5]}
    assert runs(build(SMALL, NEEDED_SPEC, None, "cpu")) == everything
    without = replace(SMALL, lap2_weight=0.0)
    fewer = everything - {"segmenters.lap2"}
    assert runs(build(without, SMALL_SPEC, None, "cpu")) == fewer
    assert runs(build(without, NEEDED_SPEC, None, "cpu")) == fewer - {"translators.lap2"}
    joint = replace(SMALL, segmenters="joint")
    assert runs(build(joint, NEEDED_SPEC, None, "cpu")) == {f"translators.{n}" for n in PAIRS[1:5]} | {
        "segmenters.joint"
    }


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, segmenters="joint", marker_weight=0.0)])
def test_fewer_channels_give_the_same_maps(config):
    tiles = tissue(2, 64, 96)
    everything = build(config, SMALL_SPEC, None, "cpu")(tiles)
    for channels in (SPEC.needed, ("negative", "dapi_green", "positive", "boundary")):
        maps = build(config, replace(SMALL_SPEC, channels=channels), None, "cpu")(tiles)
        np.testing.assert_array_equal(maps, everything[:, [SPEC.channels.index(name) for name in channels]])


def test_the_generator_gives_the_output_of_the_networks():
    networks = initialised(lambda: Networks(SMALL)).eval()
    tiles = tissue(2, 64, 64)
    with torch.inference_mode():
        made = [networks(torch.from_numpy(tile[None]).float() / 127.5 - 1) for tile in tiles]
    maps = build(SMALL, SMALL_SPEC, networks.state_dict(), "cpu")(tiles)
    for index, name in enumerate(PICTURES):
        wanted = torch.cat([one[name] for one in made]).numpy()
        np.testing.assert_allclose(maps[:, 3 * index : 3 * index + 3] * 2 - 1, wanted, atol=1e-3)


def test_nearly_empty_tiles_get_constant_maps():
    tiles = tissue(3, 64, 64)
    tiles[1] = np.random.default_rng(0).normal(240, 2, tiles[1].shape)
    assert [nearly_empty(tile) for tile in tiles] == [False, True, False]
    generator = build(SMALL, SMALL_SPEC, None, "cpu")
    maps = generator(tiles)
    colours = np.round(maps[1] * 255)
    assert colours.min(axis=(1, 2)).tolist() == colours.max(axis=(1, 2)).tolist()
    assert colours[:, 0, 0].tolist() == [0, 0, 0, 201, 211, 208, 10, 10, 10, 0, 0, 0, 10, 10, 10]
    np.testing.assert_array_equal(maps[[0, 2]], generator(tiles[[0, 2]]))


@pytest.mark.parametrize(
    ("value", "empty"), [([0, 255], True), ([100, 105], True), ([100, 107], False), ([90, 0], True)]
)
def test_nearly_empty_is_a_small_variance_of_grey_values_without_black_and_white(value, empty):
    assert nearly_empty(np.tile(np.uint8(value), (3, 4, 8))) == empty


def test_unknown_channels_and_tile_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="no channel 'cd3'"):
        build(SMALL, replace(SMALL_SPEC, channels=(*SPEC.needed, "cd3")), None, "cpu")
    with pytest.raises(ModelError, match="32 px cannot be downsampled 6 times"):
        build(replace(SMALL, downsamplings=6), SMALL_SPEC, None, "cpu")


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 0},
        {"norm": "layer"},
        {"decay": 2.0},
        {"dapi_weight": -1.0},
        {"segmenters": "all"},
        dict.fromkeys((f"{name}_weight" for name in PAIRS[:5]), 0.0),
        {"segmenters": "joint"} | dict.fromkeys((f"{name}_weight" for name in PAIRS[1:5]), 0.0),
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Config(**wrong)


def pairs(batch=1, side=32, seed=0):
    """Return a batch in which each image is the IHC, its negative, or a mask of its brown regions."""
    ihc = tissue(batch, side, side, seed)
    brown = (ihc[:, :1] > ihc[:, 2:]) & (ihc[:, :1] < 180)
    blue = (ihc[:, :1] < ihc[:, 2:] - 20) & (ihc[:, :1] < 180)
    mask = np.concatenate([brown, 0 * brown, blue], axis=1).astype(np.uint8) * 255
    pictures = {"ihc": ihc, "hematoxylin": ihc, "dapi": 255 - ihc, "lap2": 255 - ihc, "marker": mask}
    return {name: torch.from_numpy(at) for name, at in {**pictures, "segmentation": mask}.items()}


def trained(config=SMALL, steps=4, seed=1, start=None):
    return Recipe(config, steps=steps, seed=seed, device="cpu", tiles=False, start=start)


@pytest.mark.parametrize("config", [replace(SMALL, spectral=True, synthetic=0.7)], ids=["synthetic"])
def test_a_resumed_training_equals_an_uninterrupted_one(config):
    whole, first, second = (trained(config, steps=3) for _ in range(3))
    losses = [whole.step(pairs(seed=number), number) for number in range(3)]
    for number in range(2):
        first.step(pairs(seed=number), number)
    torch.save(first.state(), held := io.BytesIO())
    second.restore(torch.load(io.BytesIO(held.getvalue()), weights_only=True))
    again = second.step(pairs(seed=2), 2)
    assert {name: float(loss) for name, loss in again.items()} == {k: float(v) for k, v in losses[2].items()}
    assert all(np.array_equal(value, second.weights()[name]) for name, value in whole.weights().items())


def test_trained_weights_generate_what_is_shown_and_start_a_training():
    recipe = trained()
    recipe.step(batch := pairs(), 0)
    shown = recipe.show(batch)
    assert list(shown) == ["ihc", "segmentation", "predicted"]
    assert all(at.dtype == torch.uint8 and at.shape == batch["ihc"].shape for at in shown.values())
    maps = build(SMALL, NEEDED_SPEC, recipe.weights(), "cpu")(batch["ihc"].numpy())
    np.testing.assert_allclose(maps * 255, shown["predicted"].numpy(), atol=1)
    again = trained(start=recipe.weights())
    assert all(np.array_equal(value, again.weights()[name]) for name, value in recipe.weights().items())


def test_training_lowers_every_loss():
    config = replace(SMALL, blocks=1, adversarial=0.0, dropout=0.0, rate=1e-2)
    recipe = trained(config, steps=10)
    losses = [recipe.step(pairs(), number) for number in range(10)]
    for name in PAIRS[1:]:
        assert float(losses[-1][name]) < 0.7 * float(losses[0][name])


def test_synthetic_pairs_are_used_in_the_second_half_without_the_marker():
    recipe = trained(replace(SMALL, synthetic=1.0))
    names = [set(recipe.step(pairs(), number)) for number in range(4)]
    assert all("marker" in step and "synthetic_ihc" in step for step in names[:2])
    assert not any("marker" in step for step in names[2:])


def test_a_source_of_weight_0_is_not_trained_and_the_other_weights_add_up_to_1():
    config = replace(SMALL, marker_weight=0.0)
    assert sum(config.weights().values()) == pytest.approx(1)
    recipe = trained(config)
    assert "segmentation_marker" not in recipe.networks["discriminator"]
    assert "segmentation" in recipe.step(pairs(), 0)
    joint = trained(replace(SMALL, segmenters="joint"))
    assert "segmentation_joint" in joint.networks["discriminator"]
    assert "segmentation" in joint.step(pairs(), 0)


def test_half_or_more_of_the_negative_cells_become_positive_and_the_rest_is_unchanged():
    mask = np.zeros((3, 100, 100), np.uint8)
    for row in range(5, 95, 10):
        for column in range(5, 95, 10):
            mask[1, row - 4 : row + 5, column - 4 : column + 5] = 255
            mask[:, row - 3 : row + 4, column - 3 : column + 4] = np.array([30, 0, 220])[:, None, None]
    mask[0, 5, 5], mask[2, 5, 5] = 220, 30
    altered = more_positive(mask[None], np.random.default_rng(0))[0]
    np.testing.assert_array_equal(altered[1], mask[1])
    np.testing.assert_array_equal(altered.sum(axis=0), mask.sum(axis=0))
    turned = (altered != mask).any(axis=0)[5:95:10, 6:95:10]
    assert turned.mean() in [pytest.approx(fraction, abs=0.01) for fraction in (0.5, 0.7, 0.9)]
    assert (altered[0, 5:95:10, 6:95:10][turned] == 220).all()
    assert altered[0, 5, 5] == 220 or turned[0, 0]
    np.testing.assert_array_equal(more_positive(mask[None] * 0, np.random.default_rng(0))[0], mask * 0)
