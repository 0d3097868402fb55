"""Models on disk: written, loaded, listed; and what is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cards import CARD, SMALL, edit, same_folder
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.errors import ModelError, OutputError
from wsiscore.generators import ihcscoregan
from wsiscore.models.card import read_card
from wsiscore.models.store import (
    default_model,
    find_model,
    load_model,
    model_names,
    write_model,
)
from wsiscore.networks.generator import pick_device


def test_weights_written_are_the_weights_loaded_whatever_their_layout(model):
    generator = load_model(model, "cpu")
    for name, value in ihcscoregan.build(SMALL, CARD.spec, None, "cpu").weights().items():
        np.testing.assert_array_equal(generator.weights()[name], value)


def test_a_written_model_says_its_hash(model):
    card = read_card(model)
    assert card.provenance() == {
        "name": "small",
        "family": "ihcscoregan",
        "version": "1",
        "weights_sha256": card.weights.sha256,
    }
    assert len(card.weights.sha256) == 64


def test_the_card_decides_the_spec_not_the_family(model):
    edit(model, lambda data: data["spec"].update(mpp=0.25, channels=["center", "negative", "positive"]))
    spec = load_model(model, "cpu").spec
    assert spec.mpp == 0.25
    assert spec.channels == ("center", "negative", "positive")


def test_half_precision_weights_serve_too(model):
    whole = load_model(model, "cpu").weights()
    write_model(model, CARD, {name: value.astype(np.float16) for name, value in whole.items()})
    half = load_model(model, "cpu").weights()
    for name, value in whole.items():
        assert half[name].dtype == np.float32
        np.testing.assert_allclose(half[name], value, atol=1e-3)


# What comes with the package


def test_the_models_that_come_with_the_package_are_whole():
    assert default_model() in model_names()
    for name in model_names():
        card = read_card(find_model(name))
        assert card.name == name
        assert load_model(name, "cpu").spec == card.spec
        assert card.provenance()["weights_sha256"] == (card.weights.sha256 if card.weights else None)


def test_cards_and_models_without_weights_need_no_torch():
    program = (
        "import sys\n"
        "from wsiscore.models.card import read_card\n"
        "from wsiscore.models.store import default_model, find_model, load_model, model_names\n"
        "cards = [read_card(find_model(name)) for name in model_names()]\n"
        "default_model()\n"
        "for card in cards:\n"
        "    if card.weights is None: load_model(card.name)\n"
        "from click.testing import CliRunner\n"
        "from wsiscore.cli.models import models\n"
        "assert CliRunner().invoke(models, ['list']).exit_code == 0\n"
        "assert cards and 'torch' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


# What is wrong is said


def test_an_unknown_model_lists_what_there_is():
    with pytest.raises(ModelError, match=r"no model or folder is called 'nonesuch'; models there are: .*hdab"):
        load_model("nonesuch")


def test_a_path_is_a_folder_even_if_a_model_has_its_name():
    with pytest.raises(ModelError, match="no model or folder"):
        find_model(Path(model_names()[0]))


def test_weights_of_another_family_name_the_cards_family_and_the_first_missing_key(model):
    write_model(model, CARD, {"layer1.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(ModelError, match=r"family 'ihcscoregan' .*: 'encoder\.down\.0\.weight' is missing"):
        load_model(model, "cpu")


@same_folder
@given(data=st.data())
def test_weights_truncated_or_changed_anywhere_are_refused(model, data):
    path = model / "weights.safetensors"
    whole = path.read_bytes()
    where = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[where] ^= data.draw(st.integers(1, 255))
    for content in (whole[:where], bytes(changed)):
        path.write_bytes(content)
        with pytest.raises(ModelError, match="is truncated or changed: its SHA-256 is"):
            load_model(model, "cpu")
    path.write_bytes(whole)


def test_missing_weights_are_named(model):
    (model / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights\.safetensors is missing"):
        load_model(model, "cpu")


def test_a_weights_file_of_another_kind_is_named(model):
    (model / "weights.safetensors").write_bytes(b"hello")
    sha256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    edit(model, lambda data: data["weights"].update(sha256=sha256))
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_model(model, "cpu")


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path, where):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write .*choose another folder"):
        write_model(tmp_path / where, CARD, None)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "CPU", ""])
def test_a_device_that_is_not_there_is_refused(model, device):
    with pytest.raises(ModelError, match=r"is not on this computer; choose auto or one of: .*cpu"):
        load_model(model, device)


def test_auto_is_a_device_that_is_there():
    assert pick_device(pick_device("auto")) == pick_device("auto")
