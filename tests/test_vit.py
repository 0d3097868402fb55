"""The vision transformer, and encoders imported into it."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, gelu, layer_norm, linear
from training_parts import SMALL_ATST, atst_recipe

from wsiscore.errors import ModelError
from wsiscore.generators import atst
from wsiscore.generators.atst import SPEC, BothWays, Config, build, read_published
from wsiscore.models import store
from wsiscore.models.store import import_published, load_model
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.networks.generator import initialised
from wsiscore.networks.vit import VisionTransformer


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
    small = {name: value + 1 for name, value in build(SMALL_ATST, SPEC, None, "cpu").weights().items()}
    importing = replace(atst.FAMILY, read_published=lambda _: (SMALL_ATST, small))
    monkeypatch.setattr(store, "family", lambda _: importing)
    card = import_published(tmp_path / "encoder.pth", SPEC.family, tmp_path / "model")
    assert "Not trained yet" in card.description
    assert "--start" in card.description
    started = atst_recipe(start=load_model(tmp_path / "model", "cpu").weights()).weights()
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
