"""Pyramid pix2pix: the losses of its pyramid, its ablations, and tiles without seams."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from wsiscore.generators.pyramidp2p import SPEC, Config, Recipe, build, downsampled

SMALL = Config(width=4, blocks=1, discriminator_width=4)


def small_recipe(**changed):
    return Recipe(replace(SMALL, **changed), steps=4, seed=0, device="cpu", tiles=False, start=None)


def test_the_next_scale_is_four_gaussian_blurs_and_every_second_pixel():
    picture = torch.from_numpy(np.random.default_rng(0).random((32, 40)))
    beside = np.exp(-1 / 2)
    once = np.array([beside, 1, beside]) / (1 + 2 * beside)
    four = np.convolve(np.convolve(once, once), np.convolve(once, once))
    blurred = np.apply_along_axis(np.convolve, 0, picture.numpy(), four, "same")
    blurred = np.apply_along_axis(np.convolve, 1, blurred, four, "same")
    found = downsampled(picture[None, None])[0, 0].numpy()
    assert found.shape == (16, 20)
    np.testing.assert_allclose(found[2:-2, 2:-2], blurred[::2, ::2][2:-2, 2:-2], atol=1e-12)


def test_the_edge_is_mirrored():
    picture = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    picture[..., 1] = 1
    mirrored = torch.cat([picture[..., 1:].flip(-1), picture], dim=-1)  # 7 more columns, without the edge twice
    assert torch.allclose(downsampled(picture)[..., :2], downsampled(mirrored[..., 1:])[..., 3:5], atol=1e-12)


def test_a_constant_difference_is_the_same_at_every_scale():
    losses = small_recipe(l1=1.0, scale1=2.0, scale2=3.0, scale3=4.0).pyramid_losses(
        torch.zeros(1, 3, 32, 32), torch.full((1, 3, 32, 32), 0.5)
    )
    assert {name: pytest.approx(float(loss)) for name, loss in losses.items()} == {
        "l1": 0.5,
        "scale1": 1.0,
        "scale2": 1.5,
        "scale3": 2.0,
    }


def test_stripes_of_one_pixel_count_at_full_size_and_little_at_coarser_scales():
    """Each blur leaves (1 − 2b) / (1 + 2b) of them, b = exp(−1/2); subsampling then keeps one colour."""
    stripes = torch.ones(1, 3, 32, 32)
    stripes[..., 1::2] = -1
    losses = small_recipe().pyramid_losses(torch.zeros_like(stripes), stripes)
    beside = np.exp(-1 / 2)
    left = ((1 - 2 * beside) / (1 + 2 * beside)) ** 4
    wanted = [25, 25 * left, 25 * left, 25 * left]
    np.testing.assert_allclose([float(loss) for loss in losses.values()], wanted, rtol=1e-3)


@pytest.mark.parametrize(
    ("weights", "left"),
    [
        ({"scale1": 0, "scale2": 0, "scale3": 0}, ["l1"]),
        ({"scale2": 0, "scale3": 0}, ["l1", "scale1"]),
        ({"scale3": 0}, ["l1", "scale1", "scale2"]),
        ({"l1": 0, "scale1": 0, "scale2": 0}, ["scale3"]),
        ({"l1": 0, "scale1": 0, "scale2": 0, "scale3": 0}, []),
    ],
)
def test_a_scale_without_weight_has_no_loss(weights, left):
    """Rows of the paper's table 3, and others."""
    pair = {name: torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8) for name in ("he", "ihc")}
    assert list(small_recipe(**weights).step(pair, 0)) == ["discriminator", "adversarial", *left]


def test_stored_weights_include_the_running_statistics():
    recipe = small_recipe()
    before = recipe.weights()
    recipe.step({name: torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8) for name in ("he", "ihc")}, 0)
    after = recipe.weights()
    for name in ("stem.1.running_mean", "stem.1.running_var", "blocks.0.block.1.running_mean"):
        assert not np.allclose(before[name], after[name])


def test_pixels_beyond_the_margin_have_no_effect():
    generator = build(Config(width=4), SPEC, None, "cpu")
    margin, core = SPEC.margin_px, 64
    picture = np.random.default_rng(1).integers(0, 256, (1, 3, 2 * margin + core, 2 * margin + core + 128), np.uint8)
    across = generator(picture)[..., margin + 32 : margin + 32 + core]
    tile = generator(picture[..., 32 : 32 + 2 * margin + core])
    np.testing.assert_allclose(tile[..., margin : margin + core], across, rtol=0, atol=1e-5)
    at_edge = generator(picture[..., 32 : 32 + 2 * margin + core])[..., :core]
    assert np.abs(at_edge - generator(picture)[..., 32 : 32 + core]).max() > 1e-3


def test_the_unet_of_table_1_takes_multiples_of_256_px():
    config = replace(SMALL, generator="unet")
    generator = build(config, SPEC, None, "cpu")
    assert generator(np.zeros((1, 3, 256, 256), np.uint8)).shape == (1, 3, 256, 256)
    with pytest.raises(ValueError, match="multiples of 256 px"):
        generator(np.zeros((1, 3, 64, 64), np.uint8))
    pair = {name: torch.randint(0, 256, (1, 3, 256, 256), dtype=torch.uint8) for name in ("he", "ihc")}
    recipe = Recipe(config, steps=1, seed=0, device="cpu", tiles=False, start=generator.weights())
    assert np.isfinite(float(recipe.step(pair, 0)["l1"]))


def test_a_generator_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="resnet or unet"):
        replace(SMALL, generator="other")
    with pytest.raises(ValueError, match="dropout"):
        replace(SMALL, dropout=1.0)
