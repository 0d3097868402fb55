"""TDKstain: stain and density images derived from IHC, and which network gets a gradient from which loss."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiscore.generators import tdkstain
from wsiscore.generators.tdkstain import Config, DensityEstimator, Recipe, derived, membrane_mask
from wsiscore.stain import Stain
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field

SMALL = Config(width=4, blocks=1, discriminator_width=4, density_width=4, density_blocks=1)
PX = 256


def small_recipe(**changed):
    return Recipe(replace(SMALL, **changed), steps=4, seed=0, device="cpu", tiles=False, start=None)


def stained(hematoxylin_od, dab_od):
    """Return (H, W, 3) of white light through two stains, each (H, W) in OD."""
    stain = Stain.default()
    od = np.multiply.outer(hematoxylin_od, stain.hematoxylin) + np.multiply.outer(dab_od, stain.dab)
    return np.rint(255 * 10**-od).astype(np.uint8)


def mask_of(dab, saturation):
    unit = torch.from_numpy(dab.transpose(2, 0, 1)[None]).float() / 127.5 - 1
    return membrane_mask(unit, saturation)[0, 0].numpy().astype(bool)


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(0)
    return render_field(rng, PX, PX, 0.5, appearance=Appearance.random(rng, 0.0), index=40)


@pytest.fixture(scope="module")
def images(field):
    return derived({"ihc": field.rgb})


def density_of(x_px, y_px):
    """Return the expected density map of nuclei at these positions, before scaling."""
    centers = np.zeros((PX, PX), np.float32)
    centers[y_px.astype(int), x_px.astype(int)] = 1
    return cv2.GaussianBlur(centers, (0, 0), 11, borderType=cv2.BORDER_REFLECT)


def test_the_dab_image_keeps_dab_and_removes_hematoxylin():
    grid = np.full((32, 32), 0.4)
    blue, brown, both = (
        derived({"ihc": stained(h, d)})["dab"] for h, d in ((grid, 0 * grid), (0 * grid, grid), (grid, grid))
    )
    assert blue.min() >= 250
    np.testing.assert_allclose(brown, stained(0 * grid, grid), atol=2)
    np.testing.assert_allclose(both, stained(0 * grid, grid), atol=4)


def test_the_mask_begins_at_the_od_of_its_saturation():
    """DAB of density d has the saturation 1 − 10^−(0.776 − 0.268) d: 0.2 from 0.19."""
    od = np.repeat([[0.0, 0.1, 0.17, 0.21, 0.5, 2.5, 0.3, 0.0]], 16, axis=0).repeat(2, axis=1)
    dab = derived({"ihc": stained(0 * od, od)})["dab"]
    assert mask_of(dab, 0.2)[0, ::2].tolist() == [False, False, False, True, True, True, True, False]
    assert mask_of(dab, 0.1)[0, ::2].tolist() == [False, True, True, True, True, True, True, False]
    assert mask_of(dab, 0.0).all()


def test_the_mask_covers_positive_rendered_nuclei(field, images):
    mask = mask_of(images["dab"], Config().saturation)
    rows = field.labels[(field.labels > 0) & (field.labels <= len(field.positive))] - 1
    inside = mask[(field.labels > 0) & (field.labels <= len(field.positive))]
    assert inside[field.positive[rows]].mean() > 0.9
    assert inside[~field.positive[rows]].mean() < 0.1
    assert mask[field.labels == 0].mean() < 0.1


def test_the_density_is_eight_bits_and_fills_them(images):
    assert images["density"].dtype == np.uint8
    assert images["density"].shape == (PX, PX, 1)
    assert images["density"].max() == 255


@settings(max_examples=10)
@given(st.integers(0, 2**32))
def test_the_density_is_that_of_separate_nuclei(seed):
    """Each blue or brown disc is one centre, within 2 px, and the density is the Gaussian of the centres."""
    rng, at = np.random.default_rng(seed), np.arange(28, PX - 20, 40)
    xy = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2) + rng.integers(-4, 5, (len(at) ** 2, 2))
    stains = np.zeros((2, PX, PX), np.float32)
    for center in xy.tolist():
        brown = int(rng.random() < 0.4)
        cv2.circle(stains[brown], center, int(rng.integers(7, 10)), rng.uniform(0.4, 0.7), -1)
    blurred = [cv2.GaussianBlur(stain, (0, 0), 1) for stain in stains]
    centers = np.argwhere(tdkstain._nuclei(stained(*blurred)))[:, ::-1]
    assert len(centers) == len(xy)
    assert np.hypot(*(centers[:, None] - xy).T).min(axis=1).max() <= 2
    wanted = density_of(*centers.T)
    found = tdkstain._density(np.isin(np.arange(PX**2), centers @ [1, PX]).reshape(PX, PX))
    np.testing.assert_allclose(found, 255 * wanted / wanted.max(), atol=0.51)


def test_brown_membranes_are_not_nuclei():
    """Blue nuclei in rows, each in a brown ring: as many as without the rings, in the same places."""
    hematoxylin, dab = np.zeros((PX, PX), np.float32), np.zeros((PX, PX), np.float32)
    for y in range(24, PX, 40):
        for x in range(24, PX, 40):
            cv2.circle(hematoxylin, (x, y), 8, 0.45, -1)
            cv2.circle(dab, (x, y), 14, 1.0, 4)
    bare, ringed = (
        derived({"ihc": stained(cv2.GaussianBlur(hematoxylin, (0, 0), 1), d)})["density"] for d in (0 * dab, dab)
    )
    y, x = (part.ravel() for part in np.mgrid[24:PX:40, 24:PX:40])
    for found in (bare, ringed):
        assert np.corrcoef(density_of(x, y).ravel(), found.ravel())[0, 1] > 0.98


def test_glass_has_no_nuclei_and_no_dab():
    images = derived({"ihc": np.full((64, 64, 3), 245, np.uint8)})
    assert not images["density"].any()
    assert images["dab"].min() > 240


def test_the_estimator_takes_three_scales_and_gives_a_map_of_full_size():
    network = tdkstain._generator(SMALL)
    features = network.encode(torch.rand(2, 3, 64, 48))
    assert [tuple(level.shape[1:]) for level in features] == [(8, 32, 24), (16, 16, 12), (32, 8, 6)]
    assert DensityEstimator(4, 4, 1)(features).shape == (2, 1, 64, 48)


def batch_of(field, images, count=1):
    tile = {"he": field.rgb[..., ::-1], "ihc": field.rgb, **images}
    return {
        name: torch.from_numpy(np.stack([at[:64, :64].transpose(2, 0, 1)] * count).copy()) for name, at in tile.items()
    }


def test_a_step_updates_the_estimator_then_the_discriminator_then_the_generator(field, images, monkeypatch):
    recipe, order = small_recipe(), []
    inner = recipe.optimise
    monkeypatch.setattr(recipe, "optimise", lambda name, loss: (order.append(name), inner(name, loss)))
    losses = recipe.step(batch_of(field, images), 0)
    assert order == ["estimator", "discriminator", "generator"]
    assert list(losses) == ["density", "discriminator", "adversarial", "l1", "membrane", "nuclei"]


@pytest.mark.parametrize(
    ("weights", "gone"),
    [
        ({"nuclei": 0}, {"density", "nuclei"}),
        ({"membrane": 0}, {"membrane"}),
        ({"nuclei": 0, "membrane": 0}, {"density", "nuclei", "membrane"}),
    ],
)
def test_the_ablations_of_table_1_remove_their_losses(field, images, weights, gone):
    losses = small_recipe(**weights).step(batch_of(field, images), 0)
    assert set(losses) == {"density", "discriminator", "adversarial", "l1", "membrane", "nuclei"} - gone


def test_the_estimator_learns_from_true_images_only_and_the_encoder_from_generated_ones(field, images):
    recipe = small_recipe()
    at = {name: picture.float() / 127.5 - 1 for name, picture in batch_of(field, images).items()}

    def moved(part):
        return any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in part.parameters())

    generator, estimator = recipe.networks["generator"], recipe.networks["estimator"]
    recipe._nuclei_loss(at["ihc"].requires_grad_(True), at["density"]).backward()
    assert moved(generator.stem)
    assert not moved(estimator)
    assert at["ihc"].grad.abs().sum() > 0
    generator.zero_grad()
    recipe._estimator_step(at["ihc"], at["density"])
    assert moved(estimator)
    assert not moved(generator)


def test_the_masked_input_keeps_tissue_only_where_there_is_dab(field, images):
    recipe, seen = small_recipe(nuclei=0), []
    recipe.networks["generator"].register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    batch = batch_of(field, images)
    recipe.step(batch, 0)
    mask = mask_of(images["dab"], SMALL.saturation)[:64, :64]
    whole, masked = (((at[0] + 1) * 127.5).round().byte() for at in seen)
    assert mask.any()
    assert torch.equal(whole, batch["he"][0])
    assert torch.equal(masked[:, mask], whole[:, mask])
    assert not masked[:, ~mask].any()


@pytest.mark.parametrize(("side", "scales"), [(32, 1), (64, 2), (128, 3)])
def test_the_discriminator_skips_scales_that_are_too_small(side, scales):
    assert len(small_recipe().networks["discriminator"](torch.rand(1, 6, side, side))) == scales


def test_fractions_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"saturation and decay lie in \[0, 1\]"):
        replace(SMALL, saturation=1.5)
