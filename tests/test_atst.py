"""Virtual IHC from H&E with a transformer: both directions, region masks, losses and training."""

import copy
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_parts import SMALL_ATST, atst_recipe

from wsiscore.generators.atst import PAIRS, SPEC, build, derived, ssim
from wsiscore.networks.stain_losses import absorption, closed, nuclei_count, soft_mask
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field


@pytest.mark.parametrize(
    "config",
    [
        SMALL_ATST,
        replace(SMALL_ATST, token_px=8),
        replace(SMALL_ATST, depth=8, heads=4),
        replace(SMALL_ATST, skips=False),
    ],
    ids=["small", "token 8", "deeper", "no skips"],
)
def test_a_tile_gives_the_same_maps_alone_and_in_a_batch_at_any_size(config):
    generator = build(config, SPEC, None, "cpu")
    for height, width in ((32, 32), (96, 64)):
        tiles = np.random.default_rng(1).integers(0, 256, (3, 3, height, width), np.uint8)
        together = generator(tiles)
        assert together.shape == tiles.shape
        alone = np.concatenate([generator(tile[None]) for tile in tiles])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_a_model_runs_in_both_directions_with_the_same_weights():
    there = build(SMALL_ATST, SPEC, None, "cpu")
    back = build(replace(SMALL_ATST, reverse=True), SPEC, there.weights(), "cpu")
    tiles = np.random.default_rng(1).integers(0, 256, (1, 3, 32, 32), np.uint8)
    assert not np.allclose(there(tiles), back(tiles), atol=1e-3)
    weights = there.weights()
    spoilt = {name: value + name.startswith("to_ihc.") for name, value in weights.items()}
    np.testing.assert_array_equal(build(replace(SMALL_ATST, reverse=True), SPEC, spoilt, "cpu")(tiles), back(tiles))


def field(index, seed=3):
    rng = np.random.default_rng(seed)
    return render_field(rng, 320, 320, 0.5, appearance=Appearance.random(rng, 0.15), index=index)


def unit(rgb):
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))[None].float() / 127.5 - 1


@pytest.mark.parametrize("seed", [3, 5])
def test_the_mask_covers_positive_nuclei(seed):
    truth = field(40, seed)
    mask = derived({"ihc": truth.rgb})["mask"]
    assert mask.shape == (320, 320, 1)
    assert set(np.unique(mask)) == {0, 255}
    kind = np.zeros(truth.labels.max() + 1, int)
    kind[1 : 1 + len(truth.positive)] = np.where(truth.positive, 1, 2)
    of = kind[truth.labels]
    assert (mask[..., 0] > 0)[of == 1].mean() > 0.8
    assert (mask[..., 0] > 0)[of == 2].mean() < 0.1
    assert (mask[..., 0] > 0)[truth.labels == 0].mean() < 0.1


def test_a_section_without_dab_has_no_positive_region():
    """Otsu's method alone would divide any image."""
    assert (derived({"ihc": field(0).rgb})["mask"] > 0).mean() < 0.005


def test_the_soft_mask_of_a_section_equals_its_mask():
    rgb = field(40).rgb
    found = derived({"ihc": rgb})
    soft = soft_mask(absorption(unit(rgb))[:, 1:], torch.tensor(found["cut"].flat[0] / 255))
    assert ((soft[0, 0].numpy() > 0.5) == (found["mask"][..., 0] > 0)).mean() > 0.99


def test_closing_fills_gaps_up_to_twice_its_radius():
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:12, :], mask[..., 16:20, :] = 1, 1
    assert torch.equal(closed(mask, 1), mask)
    filled = closed(mask, 2)
    assert filled[..., 8:20, :].all()
    assert filled.sum() == 12 * 32
    assert torch.equal(closed(mask, 0), mask)


def test_nuclei_are_counted():
    truth = field(40)
    hematoxylin = absorption(unit(truth.rgb))[:, :1]
    mask = torch.from_numpy(derived({"ihc": truth.rgb})["mask"][..., 0]).float()[None, None] / 255
    assert len(truth.positive) * 0.6 < nuclei_count(hematoxylin) < len(truth.positive) * 1.2
    assert truth.positive.sum() * 0.6 < nuclei_count(hematoxylin * mask) < truth.positive.sum() * 1.2
    assert nuclei_count(torch.zeros(2, 1, 64, 64)).tolist() == [0, 0]


@pytest.fixture(scope="module")
def batch():
    """Two crops of 64 px; H&E is the IHC with reversed channels, which is enough for training."""
    rgb = field(50).rgb
    items = []
    for top in (0, 100):
        ihc = rgb[top : top + 64, 64:128]
        items.append({"he": np.ascontiguousarray(ihc[..., ::-1]), "ihc": ihc} | derived({"ihc": ihc}))
    return {name: torch.from_numpy(np.stack([item[name].transpose(2, 0, 1) for item in items])) for name in items[0]}


def test_the_auxiliary_losses_compare_with_the_section(batch):
    """The section itself has nearly no loss; glass has the losses of eq. 2 to 5."""
    config = replace(SMALL_ATST, closing_px=0)
    ihc, mask, cut = batch["ihc"] / 127.5 - 1, batch["mask"] / 255, batch["cut"] / 255
    same = atst_recipe(config)._auxiliary(ihc, ihc, mask, cut)
    glass = atst_recipe(config)._auxiliary(torch.ones_like(ihc), ihc, mask, cut)
    assert list(same) == ["location", "dense", "sparse", "intensity", "nuclei"]
    assert all(same[name] < 0.2 * glass[name] for name in ("location", "dense", "intensity", "nuclei"))
    assert glass["location"] == pytest.approx(60 * mask.mean().item(), rel=0.05)
    areas = np.sort(mask.numpy().reshape(2, 8, 8, 8, 8).mean(axis=(2, 4)).reshape(2, 64), axis=1)
    assert glass["dense"] == pytest.approx(10 * areas[:, -16:].mean(), rel=0.05)
    assert glass["sparse"] == pytest.approx(10 * areas[:, :16].mean(), abs=0.05)
    dab = absorption(ihc)[:, 1:]
    inside = [(d[m > 0].mean().item()) for d, m in zip(dab, mask, strict=True)]
    assert glass["intensity"] == pytest.approx(20 * np.mean(np.square(inside)), rel=0.1)


def test_structural_similarity_equals_its_formula():
    assert ssim(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)).item() == pytest.approx(1)
    one, other = (torch.full((1, 3, 32, 32), 2 * level - 1) for level in (0.5, 0.25))
    wanted = (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert ssim(one, other).item() == pytest.approx(wanted, abs=1e-3)
    noise = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert ssim(noise, noise).item() == pytest.approx(1, abs=1e-4)
    assert ssim(noise, -noise).item() < -0.5


def test_a_few_steps_lower_the_losses(batch):
    recipe = atst_recipe(replace(SMALL_ATST, rate=2e-3), steps=40)
    totals = []
    for number in range(10):
        losses = recipe.step(batch, number)
        totals.append(sum(float(loss) for name, loss in losses.items() if name != "discriminators"))
    assert np.mean(totals[-2:]) < 0.85 * np.mean(totals[:2])


def test_a_resumed_training_equals_an_uninterrupted_one(batch):
    whole, part = atst_recipe(), atst_recipe()
    for number in range(4):
        whole.step(batch, number)
    for number in range(2):
        part.step(batch, number)
    file = io.BytesIO()
    torch.save(part.state(), file)
    file.seek(0)
    rest = atst_recipe(start=whole.weights())
    rest.restore(torch.load(file, weights_only=True))
    for number in range(2, 4):
        rest.step(batch, number)
    assert all(np.array_equal(rest.weights()[name], value) for name, value in whole.weights().items())


def test_a_step_changes_every_network_and_its_weights_make_a_model(batch):
    recipe = atst_recipe()
    before = copy.deepcopy(recipe.networks.state_dict())
    recipe.step(batch, 0)
    after = recipe.networks.state_dict()
    still = [name for name in before if "pos_embed" not in name and torch.equal(before[name], after[name])]
    # The bias of a layer before an instance normalisation has no effect and gets no gradient but rounding errors.
    assert all(name.endswith("bias") for name in still)
    assert torch.equal(before["both.to_ihc.encoder.pos_embed"], after["both.to_ihc.encoder.pos_embed"])
    shown = recipe.show(batch)
    assert list(shown) == [*PAIRS, "virtual_ihc", "virtual_he"]
    assert all(at.dtype == torch.uint8 and at.shape == (2, 3, 64, 64) for at in shown.values())
    generated = build(SMALL_ATST, SPEC, recipe.weights(), "cpu")(batch["he"].numpy())
    np.testing.assert_allclose(shown["virtual_ihc"].numpy() / 255, generated, rtol=0, atol=1 / 255)


ABLATIONS = {
    "table 2: U-Net": ({"generator": "unet"}, set()),
    "table 2: no tasks": (
        dict.fromkeys(("location", "dense", "sparse", "intensity", "nuclei"), 0.0),
        {"location", "dense", "sparse", "intensity", "nuclei"},
    ),
    "table 2: L1": (
        dict.fromkeys(("dense", "sparse", "intensity", "nuclei"), 0.0),
        {"dense", "sparse", "intensity", "nuclei"},
    ),
    "table 2: no L5": ({"nuclei": 0.0}, {"nuclei"}),
    "table 3: no skips": ({"skips": False}, set()),
    "table 3: no residual blocks": ({"blocks": 0}, set()),
    "cycle without SSIM": ({"structure": 0.0}, set()),
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_trains_and_gives_a_model(name, batch):
    options, missing = ABLATIONS[name]
    config = replace(SMALL_ATST, **options)
    recipe = atst_recipe(config)
    losses = recipe.step(batch, 0)
    assert (
        set(losses)
        == {"adversarial", "cycle", "location", "dense", "sparse", "intensity", "nuclei", "discriminators"} - missing
    )
    assert all(torch.isfinite(loss) for loss in losses.values())
    build(config, SPEC, recipe.weights(), "cpu")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"depth": 6}, "depth is a multiple of 4"),
        ({"token_px": 14}, "token_px is 8 or 16, got 14"),
        ({"heads": 3}, "a multiple of 4 and of the heads, got 16 and 3"),
        ({"generator": "gan"}, "transformer or unet"),
        ({"patches": 1}, "patches 2"),
        ({"decay": 1.5}, "decay lies in"),
    ],
)
def test_options_out_of_range_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        replace(SMALL_ATST, **options)
