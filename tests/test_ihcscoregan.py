"""IHCScoreGAN: parity with the published program, counting, gradients and files."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import maximum_filter

from wsiscore.cli.train import _config as options_of
from wsiscore.errors import ModelError
from wsiscore.generators.ihcscoregan import SPEC, Config, build
from wsiscore.generators.ihcscoregan.network import Decoder, DualUNet, Encoder, UNet
from wsiscore.generators.ihcscoregan.published import published_names, read_published
from wsiscore.networks.generator import initialised, load_weights
from wsiscore.networks.known_maps import map_loss

SMALL = Config(width=4, blocks=1)


@pytest.fixture(scope="module")
def published(shared):
    return shared / "parity" / "ihcscoregan" / "IHCScoreGAN_40000.pt"


@pytest.fixture(scope="module")
def expected(shared):
    with np.load(shared / "parity" / "ihcscoregan" / "expected.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def tiles(expected):
    return np.ascontiguousarray(expected["input_rgb"].transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def generator(published):
    config, weights = read_published(published)
    return build(config, SPEC, weights, "cpu")


@pytest.mark.shared
def test_the_published_size_is_read_from_the_shapes(published):
    config, weights = read_published(published)
    assert config == Config(width=8, blocks=4)
    assert {name.split(".")[0] for name in weights} == {"encoder", "decoder"}


@pytest.mark.shared
def test_maps_equal_the_published_ones(generator, tiles, expected):
    tanh = generator(tiles) * 2 - 1
    assert np.abs(tanh - expected["keypoints"]).max() <= 1e-4


@pytest.mark.shared
def test_a_tile_gives_the_same_maps_alone_and_in_a_batch(generator, tiles):
    alone = np.concatenate([generator(tile[None]) for tile in tiles])
    assert np.abs(generator(tiles) - alone).max() <= 1e-5


def peaks(center, threshold):
    """Return the pixels of equation 8: above the threshold and maximal in their window, ties included."""
    window = round(2 * SPEC.rules.radius_um / SPEC.mpp) + 1
    assert window == 25
    return np.argwhere((center > threshold) & (center == maximum_filter(center, window)))


@pytest.mark.shared
def test_the_published_counting_on_our_tanh_finds_the_published_cells(published, tiles, expected):
    config, weights = read_published(published)
    network = UNet(Encoder(config), Decoder(config)).eval()
    load_weights(network, weights, "the published network")
    with torch.inference_mode():
        maps = network(torch.from_numpy(tiles).float() / 127.5 - 1).numpy()
    for index, (center, *classes) in enumerate(maps):
        found = peaks(center, 0.5)
        np.testing.assert_array_equal(found, expected[f"coords_{index}"])
        types = np.argmax([one[tuple(found.T)] for one in classes], axis=0)
        np.testing.assert_array_equal(types, expected[f"types_{index}"])


@pytest.mark.shared
def test_counting_on_our_maps_adds_only_ties_where_the_tanh_is_saturated(generator, tiles, expected):
    """In [0, 1] float32 keeps one bit less than tanh does near its ceiling, so neighbours there may tie."""
    for index, (center, *classes) in enumerate(generator(tiles)):
        found = peaks(center, SPEC.rules.threshold)
        types = np.argmax([one[tuple(found.T)] for one in classes], axis=0)
        ours = {tuple(cell): kind for cell, kind in zip(found.tolist(), types, strict=True)}
        coords = expected[f"coords_{index}"].tolist()
        for cell, kind in zip(coords, expected[f"types_{index}"], strict=True):
            assert ours.pop(tuple(cell)) == kind
        assert all(center[cell] > 1 - 1e-6 for cell in ours)


@pytest.mark.shared
def test_both_decoders_of_the_training_network_are_the_published_ones(published, tiles, expected):
    state = torch.load(published, weights_only=True)["genA2B"]
    weights = {}
    for theirs, ours in published_names(4).items():
        weights[ours.replace("decoder.", "cells.")] = state[theirs]
        weights[ours.replace("decoder.", "colour.")] = state[theirs.removeprefix("kp_")]
    network = DualUNet(Config(width=8)).eval()
    load_weights(network, weights, "the published network")
    with torch.inference_mode():
        colour, cells = network(torch.from_numpy(tiles).float() / 127.5 - 1)
    assert np.abs(colour.numpy() - expected["output"]).max() <= 1e-4
    assert np.abs(cells.numpy() - expected["keypoints"]).max() <= 1e-4


@pytest.mark.parametrize(
    ("detach", "reaches"),
    [("all", (False, False)), ("bottleneck", (False, True)), ("none", (True, True))],
)
def test_detach_stops_the_gradient_of_the_k_branch(detach, reaches):
    network = DualUNet(SMALL, detach=detach)
    _, cells = network(torch.rand(1, 3, 32, 32) * 2 - 1)
    (cells * torch.linspace(-1, 1, 32)).sum().backward()

    def moved(part):
        return any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())

    assert (moved(network.encoder.tail), moved(network.encoder.down)) == reaches
    assert moved(network.cells)
    assert not moved(network.colour)


def test_the_k_branch_of_the_training_network_is_the_stored_model():
    network = initialised(lambda: DualUNet(SMALL)).eval()
    generator = build(SMALL, SPEC, network.k_branch().state_dict(), "cpu")
    tiles = np.random.default_rng(1).integers(0, 256, (2, 3, 64, 32), np.uint8)
    with torch.inference_mode():
        _, cells = network(torch.from_numpy(tiles).float() / 127.5 - 1)
    np.testing.assert_allclose(generator(tiles) * 2 - 1, cells.numpy(), atol=1e-5)


def test_initialisation_is_reproducible_and_leaves_the_random_state_of_torch():
    before = torch.get_rng_state()
    one, other = (build(SMALL, SPEC, None, "cpu").weights() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_the_size_grows_with_the_square_of_the_width():
    sizes = [sum(w.size for w in build(Config(width), SPEC, None, "cpu").weights().values()) for width in (4, 8, 16)]
    assert all(3.5 < larger / smaller < 4.1 for smaller, larger in pairwise(sizes))


def test_a_checkpoint_of_another_program_is_refused_with_its_content(tmp_path):
    torch.save({"model": {"fc.weight": torch.zeros(2)}}, path := tmp_path / "other.pt")
    with pytest.raises(ModelError, match=r"it holds 'model'; wanted 'genA2B'"):
        read_published(path)


def test_an_incomplete_checkpoint_names_the_missing_weight(tmp_path):
    half = {"input.model.0.weight": torch.zeros(4, 3, 4, 4), "kp_output.model.1.weight": torch.zeros(8, 3, 4, 4)}
    torch.save({"genA2B": half}, path := tmp_path / "half.pt")
    with pytest.raises(ModelError, match=r"'input\.model\.0\.bias' is missing"):
        read_published(path)


def test_a_width_of_0_is_refused():
    with pytest.raises(ValueError, match="width is at least 1"):
        replace(SMALL, width=0)


def test_former_option_names_are_read_from_set_and_from_the_model_to_start_from():
    config = options_of("ihcscoregan", ["warm_share=0.25", "width=8"], {"judge_width": 6, "width": 4})
    assert config == Config(width=8, warm_fraction=0.25, discriminator_width=6)


def test_the_target_of_the_map_loss_has_the_least_loss():
    target = torch.linspace(-1, 1, 9)[None, None, None]
    exact = float(map_loss(target, target))
    assert all(float(map_loss(target + shift, target)) > exact for shift in (-0.1, 0.1))
