"""The families trained as pix2pix: published files, resumed training, stored weights."""

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
    "pyramidp2p": pyramidp2p.Config(width=4, blocks=1, discriminator_width=4),
    "tdkstain": tdkstain.Config(width=4, blocks=1, discriminator_width=4, density_width=4, density_blocks=1),
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


def make_recipe(module, name, start=None, **changed):
    return module.Recipe(
        SMALL[name], **{"steps": 6, "seed": 3, "device": "cpu", "tiles": False, "start": start} | changed
    )


def published(module, name):
    """Return a state dict as the published program writes it, of a newly initialised small network."""
    network = (pyramidp2p._resnet if module is pyramidp2p else tdkstain._generator)(SMALL[name])
    layers = _published_layers(network)
    split = (key.rsplit(".", 1) for key in network.state_dict())
    return {f"{layers[layer]}.{kind}": network.state_dict()[f"{layer}.{kind}"] for layer, kind in split}


@pytest.mark.shared
def test_outputs_equal_the_published_ones_alone_and_in_a_batch(shared, name, module):
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
def test_files_of_other_programs_are_refused_in_one_line(shared, name, module):
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


def test_a_file_with_a_missing_extra_or_misshapen_layer_names_it(name, module, tmp_path):
    whole = published(module, name)
    last = list(whole)[-1]
    cases = [
        ({key: value for key, value in whole.items() if key != last}, f"{last!r} is missing"),
        (whole | {"model.99.weight": torch.zeros(1)}, "'model.99.weight' is not one of its weights"),
        (whole | {last: torch.zeros(7)}, rf"{last!r} is \(7,\), wanted \(3,\)"),
        ({"epoch": 3, "net": {}}, "it holds 'epoch', 'net'; wanted its latest_net_G.pth"),
        ([1], "it holds no dict"),
    ]
    for state, message in cases:
        torch.save(state, tmp_path / FILE)
        with pytest.raises(ModelError, match=message):
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


def test_a_resumed_training_equals_an_uninterrupted_one(name, module, batch):
    whole, first = make_recipe(module, name), make_recipe(module, name)
    for number in range(4):
        whole.step(batch, number)
    for number in range(2):
        first.step(batch, number)
    torch.save(first.state(), file := io.BytesIO())
    file.seek(0)
    second = make_recipe(module, name, seed=3)
    second.restore(torch.load(file, weights_only=True))
    torch.rand(5)  # other random numbers do not matter
    for number in range(2, 4):
        second.step(batch, number)
    for one, other in zip(whole.networks.state_dict().values(), second.networks.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_few_steps_lower_the_difference(name, module, batch):
    config = replace(SMALL[name], rate=2e-3)
    recipe = module.Recipe(config, steps=12, seed=3, device="cpu", tiles=False, start=None)
    losses = [{key: float(loss) for key, loss in recipe.step(batch, number).items()} for number in range(12)]
    assert losses[-1]["l1"] < 0.8 * losses[0]["l1"]
    assert all(np.isfinite(list(loss.values())).all() for loss in losses)


def test_stored_weights_generate_what_is_shown_and_start_a_training(name, module, batch):
    recipe = make_recipe(module, name)
    for number in range(2):
        recipe.step(batch, number)
    shown = recipe.show(batch)
    assert list(shown) == ["he", "ihc", "generated"]
    assert all(at.dtype == torch.uint8 and at.shape == (2, 3, 64, 64) for at in shown.values())
    assert torch.equal(shown["he"], batch["he"])
    assert torch.equal(shown["ihc"], batch["ihc"])
    weights = recipe.weights()
    generated = module.build(SMALL[name], module.SPEC, weights, "cpu")(batch["he"].numpy())
    assert np.abs(generated * 255 - shown["generated"].numpy()).max() <= 0.51
    again = make_recipe(module, name, start=weights).weights()
    assert all(np.array_equal(weights[key], again[key]) for key in weights)
    with pytest.raises(ModelError, match=f"not those of family '{name}'"):
        make_recipe(module, name, start={})


def test_the_learning_rate_is_constant_and_then_falls_to_zero(name, module, batch):
    recipe = make_recipe(module, name)
    rates = []
    for number in (0, 3, 4, 5):
        recipe.step(batch, number)
        rates.append({group["lr"] for optimiser in recipe.optimisers for group in optimiser.param_groups})
    assert all(len(rate) == 1 for rate in rates)
    found = [rate.pop() for rate in rates]
    np.testing.assert_allclose(found, [2e-4, 2e-4, 2e-4 * 2 / 3, 2e-4 / 3])
    assert all(later <= earlier for earlier, later in pairwise(found))


def test_the_discriminator_learns_from_both_kinds_and_gets_no_gradient_from_the_generator(name, module, batch):
    recipe = make_recipe(module, name)
    given, true = (batch[key].float() / 127.5 - 1 for key in module.PAIRS)
    recipe.adversarial_loss(given, true.requires_grad_(True)).backward()
    assert true.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in recipe.networks["discriminator"].parameters())
    losses = [float(recipe.discriminator_step(given, true.detach(), given).detach()) for _ in range(10)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("wrong", [{"width": 0}, {"discriminator_width": 0}, {"decay": 2.0}, {"blocks": -1}])
def test_options_out_of_range_are_refused(module, wrong):
    with pytest.raises(ValueError, match="got"):
        module.Config(**wrong)


def test_a_checkpoint_with_former_names_of_networks_is_restored(name, module, batch):
    trained = make_recipe(module, name)
    trained.step(batch, 0)
    state = trained.state()
    state["networks"] = {key.replace("discriminator", "judge"): value for key, value in state["networks"].items()}
    resumed = make_recipe(module, name, seed=4)
    resumed.restore(state)
    for one, other in zip(trained.networks.state_dict().values(), resumed.networks.state_dict().values(), strict=True):
        assert torch.equal(one, other)
