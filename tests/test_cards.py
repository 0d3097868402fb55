"""What a model's card may say."""

import json
import os
from dataclasses import asdict, replace

import numpy as np
import pytest
from cards import SMALL, edit, same_folder
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.cells.rules import CenterRules
from wsiscore.errors import ModelError
from wsiscore.generators import ihcscoregan
from wsiscore.models.card import INDEX_ERROR, Card, Measurement, read_card
from wsiscore.models.contract import GeneratorSpec
from wsiscore.models.registry import names
from wsiscore.models.store import (
    find_model,
    load_model,
    model_names,
    write_model,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
specs = st.builds(
    lambda mpp, tiles, margin, order, threshold, radius: GeneratorSpec(
        "ihcscoregan", order, mpp, 32 * tiles, min(margin, 15), 32, "float16", CenterRules(threshold, radius)
    ),
    st.floats(0.1, 4),
    st.integers(1, 64),
    st.integers(0, 100),
    st.permutations(["center", "positive", "negative"]).map(tuple),
    st.floats(0, 1),
    st.floats(0.1, 50),
)
MEASURED = {"set": "x", "metric": "y", "value": 1.0, "command": "z"}
measurements = st.builds(Measurement, texts, texts, st.floats(allow_nan=False, allow_infinity=False) | texts, texts)
cards = st.builds(
    Card,
    name=texts,
    family=st.sampled_from(names()),
    version=texts,
    description=texts,
    licence=texts,
    trained_on=texts,
    spec=specs,
    config=st.dictionaries(texts, st.integers(-4096, 4096) | texts | st.booleans(), max_size=3),
    chosen_on=st.lists(measurements, max_size=3).map(tuple),
    tested_on=st.lists(measurements, max_size=3).map(tuple),
    polarity=st.none() | texts,
).map(lambda card: replace(card, spec=replace(card.spec, family=card.family)))


@same_folder
@given(cards)
def test_a_card_written_is_the_card_read(tmp_path, card):
    assert read_card(write_model(tmp_path, card, None).folder) == replace(card, folder=tmp_path)


def test_a_card_may_say_how_centres_are_smoothed_and_older_ones_do_not(model):
    assert "smooth_um" not in json.loads((model / "card.json").read_text())["spec"]["rules"]
    assert read_card(model).spec.rules.smooth_um == 0
    edit(model, lambda data: data["spec"]["rules"].update(smooth_um=1.5))
    card = read_card(model)
    assert card.spec.rules.smooth_um == 1.5
    assert read_card(write_model(model, card, None).folder).spec == card.spec
    edit(model, lambda data: data["spec"]["rules"].update(boundary=0.3))
    with pytest.raises(ModelError, match="'boundary' is not a rule of centers"):
        read_card(model)


def test_a_folder_without_a_card_is_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"is not a model: it has no readable card\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"name: small", b"\xff\xfe\x00"])
def test_a_card_that_is_not_json_is_refused(model, content):
    (model / "card.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"card\.json is not JSON"):
        read_card(model)


def test_a_card_that_is_not_an_object_is_refused(model):
    (model / "card.json").write_text("[1]")
    with pytest.raises(ModelError, match="wanted an object with name"):
        read_card(model)


KEYS = [(key,) for key in json.loads((find_model(model_names()[0]) / "card.json").read_text(encoding="utf-8"))]
KEYS += [("spec", key) for key in ("mpp", "tile_px", "margin_px", "multiple_px", "channels", "dtype", "rules")]
KEYS += [("weights", "file"), ("weights", "sha256")]


@pytest.mark.parametrize("keys", KEYS, ids=".".join)
def test_a_card_that_lacks_or_mistypes_a_key_says_which(model, keys):
    def within(data):
        for key in keys[:-1]:
            data = data[key]
        return data

    edit(model, lambda data: within(data).update({keys[-1]: True}))
    with pytest.raises(ModelError, match=f"the key '{keys[-1]}' must be .* got true"):
        read_card(model)
    edit(model, lambda data: within(data).pop(keys[-1]))
    with pytest.raises(ModelError, match=f"the key '{keys[-1]}' is missing"):
        read_card(model)


@pytest.mark.parametrize("rule", ["threshold", "radius_um"])
def test_a_card_that_lacks_or_mistypes_a_rule_says_which(model, rule):
    edit(model, lambda data: data["spec"]["rules"].update({rule: True}))
    with pytest.raises(ModelError, match=f"'spec' is wrong: {rule} must be .* got True"):
        read_card(model)
    edit(model, lambda data: data["spec"]["rules"].update({rule: 10**400}))
    with pytest.raises(ModelError, match=f"'spec' is wrong: {rule} must be .* got 1000"):
        read_card(model)
    edit(model, lambda data: data["spec"]["rules"].pop(rule))
    with pytest.raises(ModelError, match=f"'spec' is wrong: the rule '{rule}' is missing"):
        read_card(model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data.update(colour="red"), "the key 'colour' is not known here"),
        (lambda data: data["spec"].update(channels=["a", "b"]), "'spec' is wrong: channels a/b lack blue, green, red"),
        (lambda data: data["spec"].update(channels=[[]]), "'spec' is wrong"),
        (lambda data: data["spec"].update(tile_px=100), "'spec' is wrong: tiles of 100 px"),
        (lambda data: data["spec"].update(multiple_px=0), r"'spec\.multiple_px' is 0; wanted 1 to 4096"),
        (lambda data: data["spec"]["rules"].update(threshold=2), "'spec' is wrong: threshold must be a number in"),
        (lambda data: data.update(tested_on=[{"set": "x"}]), "'tested_on': the key 'metric' is missing"),
        (
            lambda data: data.update(chosen_on=[{**MEASURED, "value": float("nan")}]),
            "wanted a finite number",
        ),
        (lambda data: data.update(tested_on=[{**MEASURED, "errors": [101]}]), "'errors' .* list of numbers in .0, 100"),
        (lambda data: data.update(tested_on=[{**MEASURED, "metric": INDEX_ERROR, "value": -1}]), "wanted points in"),
        (lambda data: data.update(chosen_on=[{**MEASURED, "errors": ["x"]}]), "'errors' .* must be a list of numbers"),
        (lambda data: data["weights"].update(file="../x"), r"'weights\.file' is a file beside the card"),
    ],
)
def test_a_card_that_makes_no_sense_says_where(model, change, text):
    edit(model, change)
    with pytest.raises(ModelError, match=text):
        read_card(model)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda data: data.update(family="other"), "no generator family is called 'other'; there are: .*ihcscoregan"),
        (lambda data: data["config"].update(depth=3), "sets 'depth', which the family 'ihcscoregan' does not have"),
        (lambda data: data["config"].update(width=0), "wrong 'config': width is at least 1"),
        (lambda data: data["config"].update(width="4"), "wrong 'config'"),
        (lambda data: data.update(weights=None), "names no weights, and the family 'ihcscoregan' cannot do without"),
        (lambda data: data["config"].update(width=8), r"not those of family 'ihcscoregan' with width=8.*wanted \(8"),
        (lambda data: data["config"].update(blocks=2), r"width=4, blocks=2: 'encoder\.tail\.1.* is missing"),
        (lambda data: data["config"].update(blocks=0), r"'decoder\.head.* is not one of them"),
    ],
)
def test_a_card_that_does_not_fit_its_family_says_how(model, change, text):
    edit(model, change)
    with pytest.raises(ModelError, match=text):
        load_model(model, "cpu")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        *((lambda data, mpp=mpp: data["spec"].update(mpp=mpp), r"'spec\.mpp' is .*; wanted 0\.05 to 20 µm/px")
          for mpp in (0, -1, 1e-9, 1e9, float("nan"), float("inf"))),
        (lambda data: data["spec"].update(tile_px=10**6), r"'spec\.tile_px' is 1000000; wanted 1 to 4096"),
        (lambda data: data["spec"].update(tile_px=0), r"'spec\.tile_px' is 0"),
        (lambda data: data["spec"].update(margin_px=10**9), "a margin of 1000000000 px leaves nothing"),
        (lambda data: data["spec"].update(margin_px=-1), "a margin of -1 px"),
        (lambda data: data["spec"].update(multiple_px=-32), r"'spec\.multiple_px' is -32"),
        (lambda data: data["spec"].update(dtype="object"), r"'spec\.dtype' is object; wanted float16 or uint8"),
        (lambda data: data["spec"].update(channels=["a"] * 10**5), r"'spec\.channels' is 100000; wanted 1 to 64 names"),
        (lambda data: data["spec"].update(channels=["center", "positive", "negative", 3]), "'spec' is wrong"),
        (lambda data: data["config"].update(width=10**6), r"'config\.width' is 1000000; wanted at most 4096"),
        (lambda data: data["config"].update(width=10**100), r"'config\.width' is 1000000.*; wanted at most"),
        (lambda data: data["config"].update(rate=float("nan")), r"'config\.rate' is nan; wanted a finite number"),
        (lambda data: data["config"].update(rate=[1, [10**9]]), r"'config\.rate' is 1000000000; wanted at most 4096"),
    ],
)  # fmt: skip
def test_a_card_out_of_range_is_refused_before_any_work(model, change, text):
    edit(model, change)
    with pytest.raises(ModelError, match=text) as caught:
        read_card(model)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_network_larger_than_its_weights_is_never_built(model):
    """Of width 4096 it would take hundreds of gigabytes."""
    edit(model, lambda data: data["config"].update(width=4096))
    with pytest.raises(ModelError, match=r"is \(4, .*, wanted \(4096, "):
        load_model(model, "cpu")
    edit(model, lambda data: data.update(weights=None))
    with pytest.raises(ModelError, match=r"width=4096.* has .* weights; wanted at most 1e\+09"):
        load_model(model, "cpu")


def test_a_card_that_is_no_file_or_too_large_or_nested_is_refused(model):
    path = model / "card.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ModelError, match="is not JSON"):
        read_card(model)
    path.write_text(" " * (5 << 20))
    with pytest.raises(ModelError, match="is larger than 4 MiB"):
        read_card(model)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelError, match="no readable card"):
        read_card(model)


def test_a_card_with_former_option_names_loads_the_same_model(model):
    expected = load_model(model, "cpu").weights()
    former = {now: name for name, now in ihcscoregan.FAMILY.renamed.items()}
    assert set(former) <= set(asdict(SMALL))

    def rename(data):
        data["config"] = {former.get(name, name): value for name, value in data["config"].items()}

    edit(model, rename)
    assert not set(former) & set(read_card(model).config)
    found = load_model(model, "cpu").weights()
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_an_option_under_both_names_is_refused(model):
    edit(model, lambda data: data["config"].update(judge_width=8))
    with pytest.raises(ModelError, match="'judge_width' and 'discriminator_width' are the same option"):
        load_model(model, "cpu")


def test_what_an_earlier_card_measured_is_not_taken_for_a_test(model):
    def earlier(data):
        del data["tested_on"]
        data.pop("chosen_on")
        data["measured_on"] = [{**MEASURED, "metric": "mean absolute error of the index, points"}]

    edit(model, earlier)
    card = read_card(model)
    assert len(card.chosen_on) == 1
    assert (card.tested_on, card.index_errors) == ((), {})
