"""With statistics of the slide the maps depend on a pixel's surroundings alone."""

import numpy as np
import pytest
import torch
from contract import tissue
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from wsiscore.cells.rules import CenterRules
from wsiscore.generators import ihcscoregan
from wsiscore.models.contract import GeneratorSpec
from wsiscore.networks.blocks import InstanceNorm, SampleNorm
from wsiscore.networks.slide_norm import frozen, measure

MARGIN = 32
CONFIG = ihcscoregan.Config(width=4, blocks=0, maps=4)
SPEC = GeneratorSpec(
    "ihcscoregan", ("center", "positive", "negative", "other"), 0.5, 256, MARGIN, 32, rules=CenterRules(), norm="slide"
)


@pytest.fixture(scope="module")
def generator():
    return ihcscoregan.build(CONFIG, SPEC, None, "cpu").for_slide(tissue(4, 128, 128))


@settings(max_examples=15)
@given(x=st.integers(0, 8), y=st.integers(0, 8), seed=st.integers(0, 9))
def test_a_margin_of_the_receptive_field_leaves_no_seam(generator, x, y, seed):
    """A tile that starts at a multiple of the network's stride gives what the whole picture gives there."""
    whole = tissue(1, 384, 384, seed)
    x, y = 16 * x, 16 * y
    inside = np.s_[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    part = generator(whole[:, :, y : y + 256, x : x + 256])
    expected = generator(whole)[:, :, y : y + 256, x : x + 256]
    np.testing.assert_allclose(part[inside], expected[inside], rtol=0, atol=2e-6)


def test_folding_changes_no_map(generator):
    network = ihcscoregan.build(CONFIG, SPEC, None, "cpu")._network
    statistics = measure(network, torch.rand(3, 3, 64, 64), torch.ones(3, 1, 64, 64))
    folded, tiles = frozen(network, statistics), torch.rand(2, 3, 64, 64)
    fixed = _with_fixed_layers(network, statistics)
    assert not any(isinstance(layer, InstanceNorm | SampleNorm) for layer in folded.modules())
    torch.testing.assert_close(folded(tiles), fixed(tiles), rtol=0, atol=1e-5)


def _with_fixed_layers(network, statistics):
    """Return a copy whose layers are hidden from folding, so that each is applied as it is."""
    import copy

    twin = copy.deepcopy(network)
    for name, (mean, scale) in statistics.items():
        parent, child = name.rsplit(".", 1)
        layer = nn.BatchNorm2d(len(mean), affine=False, eps=0).eval()
        layer.running_mean, layer.running_var = torch.tensor(mean), 1 / torch.tensor(scale) ** 2
        setattr(twin.get_submodule(parent), child, layer)
    return twin


@pytest.mark.parametrize("norm", [InstanceNorm, SampleNorm])
def test_the_sample_itself_has_mean_0_and_variance_1(norm):
    layer = norm(5)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), layer)
    sample, weights = torch.rand(6, 3, 32, 32), (torch.rand(6, 1, 32, 32) > 0.3).float()
    normed = frozen(network, measure(network, sample, weights))(sample)
    mean = (normed * weights).sum((0, 2, 3)) / weights.sum()
    variance = ((normed - mean[:, None, None]) ** 2 * weights).sum((0, 2, 3)) / weights.sum()
    torch.testing.assert_close(mean, torch.zeros(5), rtol=0, atol=1e-4)
    torch.testing.assert_close(variance, torch.ones(5), rtol=0, atol=1e-2)


def test_what_does_not_count_changes_nothing():
    network = nn.Sequential(nn.Conv2d(3, 5, 1), InstanceNorm(5))
    sample, weights = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    weights[:, :, :, 8:] = 0
    before = measure(network, sample, weights)
    sample[:, :, :, 8:] = 7
    assert measure(network, sample, weights) == before


def test_settings_restore_the_generator_exactly(generator):
    again = ihcscoregan.build(CONFIG, SPEC, None, "cpu").with_settings(generator.settings)
    tiles = tissue(2, 64, 64)
    np.testing.assert_array_equal(again(tiles), generator(tiles))
