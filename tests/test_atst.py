"""ATST-Net: its transformer, imported encoders, masks, auxiliary losses and training."""

import copy
import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear

from wsiscore.errors import ModelError
from wsiscore.generators import atst
from wsiscore.generators.atst import PAIRS, SPEC, BothWays, Config, Recipe, build, derived, read_published, ssim
from wsiscore.models import store
from wsiscore.models.store import import_published, load_model
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.networks.generator import initialised
from wsiscore.networks.stain_losses import absorption, closed, nuclei_count, soft_mask
from wsiscore.networks.vit import VisionTransformer
from wsiscore.synthetic.appearance import Appearance
from wsiscore.synthetic.field import render_field

SMALL = Config(width=4, encoder_width=16, depth=4, heads=2, discriminator_width=4, blocks=1)


def perturbed(network):
    """Return the network with random changes to all weights and position embeddings."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for value in network.state_dict().values():
            value += 0.1 * torch.randn_like(value)
    return network


@pytest.fixture(scope="module")
def transformer():
    return perturbed(initialised(lambda: VisionTransformer(16, 8, 2, 16))).eval()


def by_definition(state, pictures, depth, heads):
    """Return the tokens after each block, after the definition of Dosovitskiy et al., with timm's weight names."""
    w = dict(state)
    tokens = conv2d(pictures, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
    tokens = tokens.flatten(2).transpose(1, 2)
    n = len(tokens)
    extra = [w[name].expand(n, 1, -1) for name in ("pretext_token", "cls_token")]
    x = torch.cat([*extra, tokens], dim=1) + w["pos_embed"]
    size = x.shape[2] // heads
    after = []
    for at in (f"blocks.{number}." for number in range(depth)):
        q, k, v = linear(
            layer_norm(x, x.shape[2:], w[at + "norm1.weight"], w[at + "norm1.bias"], 1e-6),
            w[at + "attn.qkv.weight"],
            w[at + "attn.qkv.bias"],
        ).chunk(3, dim=2)
        heads_out = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            attention = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / size**0.5, dim=2)
            heads_out.append(attention @ v[..., part])
        x = x + linear(torch.cat(heads_out, dim=2), w[at + "attn.proj.weight"], w[at + "attn.proj.bias"])
        inner = layer_norm(x, x.shape[2:], w[at + "norm2.weight"], w[at + "norm2.bias"], 1e-6)
        inner = gelu(linear(inner, w[at + "mlp.fc1.weight"], w[at + "mlp.fc1.bias"]))
        x = x + linear(inner, w[at + "mlp.fc2.weight"], w[at + "mlp.fc2.bias"])
        after.append(x)
    after[-1] = layer_norm(x, x.shape[2:], w["norm.weight"], w["norm.bias"], 1e-6)
    return after


def test_the_transformer_equals_its_definition_after_every_quarter(transformer):
    pictures = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        quarters = transformer(pictures)
        after = by_definition(transformer.state_dict(), pictures, depth=8, heads=2)
    assert [tuple(at.shape) for at in quarters] == [(2, 16, 14, 14)] * 4
    for found, block in zip(quarters, (1, 3, 5, 7), strict=True):
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), after[block][:, 2:], rtol=0, atol=1e-5)


def test_position_embeddings_are_stored_for_224_px_and_interpolated_for_other_sizes(transformer):
    assert torch.equal(transformer.positions(14, 14), transformer.pos_embed)
    wide = transformer.positions(14, 28)
    assert wide.shape == (1, 2 + 14 * 28, 16)
    assert torch.equal(wide[:, :2], transformer.pos_embed[:, :2])
    # Each column becomes two, a quarter of the way to its neighbours, so pairs keep about the mean.
    smooth = initialised(lambda: VisionTransformer(16, 4, 2, 16))
    pairs = smooth.positions(14, 28)[:, 2:].reshape(14, 14, 2, 16).mean(dim=2)
    stored = smooth.pos_embed[:, 2:].reshape(14, 14, 16)
    assert (pairs - stored)[:, 1:-1].abs().max() < 0.2
    assert not torch.allclose(wide[:, 2:16], transformer.pos_embed[:, 2:16])


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, token_px=8), replace(SMALL, depth=8, heads=4), replace(SMALL, skips=False)],
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
    there = build(SMALL, SPEC, None, "cpu")
    back = build(replace(SMALL, reverse=True), SPEC, there.weights(), "cpu")
    tiles = np.random.default_rng(1).integers(0, 256, (1, 3, 32, 32), np.uint8)
    assert not np.allclose(there(tiles), back(tiles), atol=1e-3)
    weights = there.weights()
    spoilt = {name: value + name.startswith("to_ihc.") for name, value in weights.items()}
    np.testing.assert_array_equal(build(replace(SMALL, reverse=True), SPEC, spoilt, "cpu")(tiles), back(tiles))


# Imported encoders


@pytest.mark.parametrize(
    ("place", "prefix"),
    [((), ""), (("model",), ""), (("state_dict",), "module.base_encoder."), (("a", "b"), "encoder.")],
)
def test_an_encoder_is_found_at_any_depth_and_prefix(transformer, tmp_path, place, prefix):
    state = dict(transformer.state_dict()) | {"head.weight": torch.zeros(5, 16), "head.bias": torch.zeros(5)}
    held = {prefix + name: value for name, value in state.items()}
    if prefix == "module.base_encoder.":
        held |= {f"module.momentum_encoder.{name}": value + 1 for name, value in state.items()}
    for name in reversed(place):
        held = {"epoch": 3, name: held}
    torch.save(held, path := tmp_path / "encoder.pth")
    assert_encoder(atst._encoder_state(read_checkpoint(path)), transformer)


def test_the_last_norm_may_be_called_fc_norm(transformer):
    state = {name.replace("norm.", "fc_norm."): value for name, value in transformer.state_dict().items()}
    assert "blocks.0.norm1.weight" in state
    assert_encoder(atst._encoder_state(state), transformer)


def assert_encoder(found, transformer):
    assert found.keys() == transformer.state_dict().keys()
    for name, value in transformer.state_dict().items():
        np.testing.assert_array_equal(found[name], value)


def test_the_model_has_the_imported_encoder(transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(atst, "Config", partial(Config, width=4))  # a small decoder is faster to initialise
    torch.save(transformer.state_dict(), path := tmp_path / "encoder.pth")
    config, weights = read_published(path)
    assert config == Config(width=4, encoder_width=16, depth=8, token_px=16)
    place = "to_ihc.encoder."
    found = {name.removeprefix(place): value for name, value in weights.items() if name.startswith(place)}
    assert_encoder(found, transformer)
    assert weights.keys() == BothWays(config).state_dict().keys()


def test_a_plain_transformer_gets_a_pretext_token_without_position(transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(atst, "Config", partial(Config, width=4))
    state = dict(transformer.state_dict())
    del state["pretext_token"]
    state["pos_embed"] = state["pos_embed"][:, 1:]
    torch.save(state, path := tmp_path / "plain.pth")
    _, weights = read_published(path)
    np.testing.assert_array_equal(weights["to_ihc.encoder.pos_embed"][:, 1:], state["pos_embed"].numpy())
    assert not weights["to_ihc.encoder.pos_embed"][:, 0].any()


def test_an_imported_model_is_described_as_untrained_and_starts_a_training(tmp_path, monkeypatch):
    small = {name: value + 1 for name, value in build(SMALL, SPEC, None, "cpu").weights().items()}
    importing = replace(atst.FAMILY, read_published=lambda _: (SMALL, small))
    monkeypatch.setattr(store, "family", lambda _: importing)
    card = import_published(tmp_path / "encoder.pth", SPEC.family, tmp_path / "model")
    assert "Not trained yet" in card.description
    assert "--start" in card.description
    started = trainer(start=load_model(tmp_path / "model", "cpu").weights()).weights()
    assert all(np.array_equal(started[name], value) for name, value in small.items())


class Code:
    """An object whose pickle runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit",)


def bad_files(transformer):
    """Return name -> (content, pattern of the error)."""
    state = dict(transformer.state_dict())
    whole = io.BytesIO()
    torch.save(state, whole)
    without = {name: value for name, value in state.items() if name != "blocks.3.mlp.fc1.bias"}
    short = {name: value for name, value in state.items() if not name.startswith("blocks.7.")}
    wide = state | {"pos_embed": torch.zeros(1, 2 + 24 * 24, 16)}
    scaled = state | {"blocks.0.ls1.gamma": torch.ones(16)}
    tokens = state | {"patch_embed.proj.weight": torch.zeros(16, 3, 14, 14)}
    return {
        "other family": (
            {"model.1.weight": torch.zeros(4, 3, 7, 7)},
            r"it holds 'model\.1\.weight'; wanted 'patch_emb",
        ),
        "a list": ([torch.zeros(2)], "it holds no dict"),
        "half": (without, r"'blocks\.3\.mlp\.fc1\.bias' is missing"),
        "odd depth": (short, "depth is a multiple of 4"),
        "other size": (wide, r"'pos_embed' is \(1, 578, 16\), wanted \(1, 198, 16\)"),
        "other layout": (scaled, r"'blocks\.0\.ls1\.gamma' is not one of them"),
        "other tokens": (tokens, "token_px is 8 or 16, got 14"),
        "code": ({"model": Code()}, "and was not run"),
        "truncated": (whole.getvalue()[: len(whole.getvalue()) // 2], "is damaged"),
        "text": (b"<html>", "not a torch checkpoint"),
        "nothing": (None, "no such file"),
    }


def test_files_that_are_not_encoders_are_refused_in_one_line(transformer, tmp_path):
    for name, (content, text) in bad_files(transformer).items():
        path = tmp_path / f"{name}.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content is not None:
            torch.save(content, path)
        with pytest.raises(ModelError, match=text) as caught:
            read_published(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)


# Masks and auxiliary losses


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


def trainer(config=SMALL, steps=8, start=None):
    return Recipe(config, steps=steps, seed=0, device="cpu", tiles=False, start=start)


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
    config = replace(SMALL, closing_px=0)
    ihc, mask, cut = batch["ihc"] / 127.5 - 1, batch["mask"] / 255, batch["cut"] / 255
    same = trainer(config)._auxiliary(ihc, ihc, mask, cut)
    glass = trainer(config)._auxiliary(torch.ones_like(ihc), ihc, mask, cut)
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


# Training


def test_a_few_steps_lower_the_losses(batch):
    recipe = trainer(replace(SMALL, rate=2e-3), steps=40)
    totals = []
    for number in range(10):
        losses = recipe.step(batch, number)
        totals.append(sum(float(loss) for name, loss in losses.items() if name != "discriminators"))
    assert np.mean(totals[-2:]) < 0.85 * np.mean(totals[:2])


def test_a_resumed_training_equals_an_uninterrupted_one(batch):
    whole, part = trainer(), trainer()
    for number in range(4):
        whole.step(batch, number)
    for number in range(2):
        part.step(batch, number)
    file = io.BytesIO()
    torch.save(part.state(), file)
    file.seek(0)
    rest = trainer(start=whole.weights())
    rest.restore(torch.load(file, weights_only=True))
    for number in range(2, 4):
        rest.step(batch, number)
    assert all(np.array_equal(rest.weights()[name], value) for name, value in whole.weights().items())


def test_a_step_changes_every_network_and_its_weights_make_a_model(batch):
    recipe = trainer()
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
    generated = build(SMALL, SPEC, recipe.weights(), "cpu")(batch["he"].numpy())
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
    config = replace(SMALL, **options)
    recipe = trainer(config)
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
        replace(SMALL, **options)
