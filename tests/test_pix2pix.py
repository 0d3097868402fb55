"""What the families that learn as pix2pix does have in common: published files, resumed training, what is stored."""

import io
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from wsiscore.errors import ModelError
from wsiscore.generators import pyramidp2p, tdkstain
from wsiscore.models.store import import_published, load_model
from wsiscore.networks.pix2pix import _published_layers
from wsiscore.synthetic.pairs import render_pair

FAMILIES = {"pyramidp2p": pyramidp2p, "tdkstain": tdkstain}
SMALL = {
    "pyramidp2p": pyramidp2p.Config(width=4, blocks=1, judge_width=4),
    "tdkstain": tdkstain.Config(width=4, blocks=1, judge_width=4, density_width=4, density_blocks=1),
}
FILE = "latest_net_G.pth"


@pytest.fixture(params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture
def module(name):
    return FAMILIES[name]


@pytest.fixture(scope="module")
def batches():
    """Return a batch of rendered pairs for each family."""
    rendered = [render_pair(np.random.default_rng(seed), 64, 64, 0.5, ("he", "ihc")).pictures for seed in range(2)]
    items = [item | tdkstain.derived(item) for item in rendered]
    batch = {key: torch.from_numpy(np.stack([item[key].transpose(2, 0, 1) for item in items])) for key in items[0]}
    return {"pyramidp2p": {key: batch[key] for key in pyramidp2p.PAIRS}, "tdkstain": batch}


@pytest.fixture
def batch(batches, name):
    return batches[name]


def recipe(module, name, start=None, **changed):
    return module.Recipe(
        SMALL[name], **{"steps": 6, "seed": 3, "device": "cpu", "tiles": False, "start": start} | changed
    )


def published(module, name):
    """Return a state dict as the published program writes it, of a fresh small network."""
    network = (pyramidp2p._resnet if module is pyramidp2p else tdkstain._generator)(SMALL[name])
    layers = _published_layers(network)
    split = (key.rsplit(".", 1) for key in network.state_dict())
    return {f"{layers[layer]}.{kind}": network.state_dict()[f"{layer}.{kind}"] for layer, kind in split}


@pytest.mark.shared
def test_the_pictures_are_the_published_ones_alone_and_in_a_batch(shared, name, module):
    folder = shared / "parity" / name
    config, weights = module.read_published(folder / FILE)
    assert (config.width, config.blocks) == (8, 9)
    with np.load(folder / "expected.npz") as arrays:
        tiles, expected = arrays["input_rgb"].transpose(0, 3, 1, 2), arrays["output"]
    generator = module.build(config, module.SPEC, weights, "cpu")
    together = generator(tiles) * 2 - 1
    assert np.abs(together - expected).max() <= 1e-4
    alone = np.concatenate([generator(tile[None]) for tile in tiles]) * 2 - 1
    assert np.abs(together - alone).max() <= 1e-5


@pytest.mark.shared
def test_the_other_programs_files_are_refused_in_one_line(shared, name, module):
    others = [path for path in shared.glob(f"parity/*/{FILE}") if path.parent.name != name]
    others += [shared / "parity" / "deepliif" / "latest_net_G1.pth", shared / "parity" / "deepliif" / "G1.pt"]
    others += [shared / "parity" / "deepliif" / "latest_net_G51.pth"]
    assert len(others) == 4
    for path in others:
        with pytest.raises(ModelError) as caught:
            module.read_published(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_published_file_or_its_folder_becomes_a_model(name, module, tmp_path):
    torch.save(published(module, name), tmp_path / FILE)
    for source in (tmp_path, tmp_path / FILE):
        card = import_published(source, name, tmp_path / f"model-{source.name}")
        assert (card.config["width"], card.config["blocks"]) == (4, 1)
        assert load_model(card.folder, "cpu").spec == module.SPEC


def test_a_file_with_a_layer_missing_too_many_or_of_another_size_says_which(name, module, tmp_path):
    whole = published(module, name)
    last = list(whole)[-1]
    cases = [
        ({key: value for key, value in whole.items() if key != last}, f"{last!r} is missing"),
        (whole | {"model.99.weight": torch.zeros(1)}, "'model.99.weight' has no place in it"),
        (whole | {last: torch.zeros(7)}, rf"{last!r} is \(7,\), wanted \(3,\)"),
        ({"epoch": 3, "net": {}}, "it holds 'epoch', 'net'; wanted its latest_net_G.pth"),
        ([1], "it holds no dict"),
    ]
    for state, told in cases:
        torch.save(state, tmp_path / FILE)
        with pytest.raises(ModelError, match=told):
            module.read_published(tmp_path / FILE)


def test_a_truncated_file_and_one_with_code_are_refused(name, module, tmp_path):
    torch.save(published(module, name), path := tmp_path / FILE)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ModelError, match="damaged"):
        module.read_published(path)
    path.write_bytes(pickle.dumps(print, protocol=2))
    with pytest.raises(ModelError, match="code"):
        module.read_published(path)
    with pytest.raises(ModelError, match="no such file"):
        module.read_published(tmp_path / "nowhere")


def test_a_resumed_training_is_the_uninterrupted_one(name, module, batch):
    whole, first = recipe(module, name), recipe(module, name)
    for number in range(4):
        whole.step(batch, number)
    for number in range(2):
        first.step(batch, number)
    torch.save(first.state(), file := io.BytesIO())
    file.seek(0)
    second = recipe(module, name, seed=3)
    second.restore(torch.load(file, weights_only=True))
    torch.rand(5)  # what others draw is of no account
    for number in range(2, 4):
        second.step(batch, number)
    for one, other in zip(whole.networks.state_dict().values(), second.networks.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_few_steps_lower_the_difference(name, module, batch):
    config = replace(SMALL[name], rate=2e-3)
    taught = module.Recipe(config, steps=12, seed=3, device="cpu", tiles=False, start=None)
    losses = [{key: float(loss) for key, loss in taught.step(batch, number).items()} for number in range(12)]
    assert losses[-1]["l1"] < 0.8 * losses[0]["l1"]
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)


def test_what_is_stored_paints_what_is_shown_and_can_be_started_from(name, module, batch):
    taught = recipe(module, name)
    for number in range(2):
        taught.step(batch, number)
    shown = taught.show(batch)
    assert list(shown) == ["he", "ihc", "painted"]
    assert all(at.dtype == torch.uint8 and at.shape == (2, 3, 64, 64) for at in shown.values())
    assert torch.equal(shown["he"], batch["he"])
    assert torch.equal(shown["ihc"], batch["ihc"])
    weights = taught.weights()
    painted = module.build(SMALL[name], module.SPEC, weights, "cpu")(batch["he"].numpy())
    assert np.abs(painted * 255 - shown["painted"].numpy()).max() <= 0.51
    again = recipe(module, name, start=weights).weights()
    assert all(np.array_equal(weights[key], again[key]) for key in weights)
    with pytest.raises(ModelError, match=f"not those of family '{name}'"):
        recipe(module, name, start={})


def test_the_rate_stays_and_then_falls_to_nothing(name, module, batch):
    taught = recipe(module, name)
    rates = []
    for number in (0, 3, 4, 5):
        taught.step(batch, number)
        rates.append({group["lr"] for optimiser in taught.optimisers for group in optimiser.param_groups})
    assert all(len(rate) == 1 for rate in rates)
    found = [rate.pop() for rate in rates]
    np.testing.assert_allclose(found, [2e-4, 2e-4, 2e-4 * 2 / 3, 2e-4 / 3])
    assert all(later <= earlier for earlier, later in pairwise(found))


def test_the_judge_is_taught_on_both_kinds_and_left_alone_by_the_generator(name, module, batch):
    taught = recipe(module, name)
    given, true = (batch[key].float() / 127.5 - 1 for key in module.PAIRS)
    taught.convinced(given, true.requires_grad_(True)).backward()
    assert true.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in taught.networks["judge"].parameters())
    losses = [float(taught.judge(given, true.detach(), given).detach()) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("wrong", [{"width": 0}, {"judge_width": 0}, {"decay": 2.0}, {"blocks": -1}])
def test_options_without_a_meaning_are_refused(module, wrong):
    with pytest.raises(ValueError, match="got"):
        module.Config(**wrong)
