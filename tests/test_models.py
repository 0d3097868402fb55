"""A model's folder: what goes in comes out, and what is wrong with it is said in one line."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wsiscore.cells.rules import CenterRules
from wsiscore.cli.models import models as command
from wsiscore.errors import ModelError, OutputError
from wsiscore.generators import ihcscoregan
from wsiscore.generators.ihcscoregan import Config
from wsiscore.models.card import Card, Measurement, read_card
from wsiscore.models.contract import GeneratorSpec
from wsiscore.models.registry import names
from wsiscore.models.store import (
    default_model,
    find_model,
    import_published,
    load_model,
    model_names,
    write_model,
)
from wsiscore.networks.checkpoints import read_checkpoint
from wsiscore.networks.generator import pick_device

SMALL = Config(width=4, blocks=1)
CARD = Card("small", "ihcscoregan", "1", "A test.", "none", "nothing", ihcscoregan.SPEC, asdict(SMALL))
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)

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


@pytest.fixture
def model(tmp_path):
    """Return the folder of a small model with fresh weights."""
    folder = tmp_path / "small"
    write_model(folder, CARD, ihcscoregan.build(SMALL, CARD.spec, None, "cpu").weights())
    return folder


def edit(folder, change):
    path = folder / "card.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


# What goes in comes out


@same_folder
@given(cards)
def test_a_card_written_is_the_card_read(tmp_path, card):
    assert read_card(write_model(tmp_path, card, None).folder) == replace(card, folder=tmp_path)


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


# Import


def published(tmp_path, width=4, blocks=1):
    """Return a checkpoint as the published program writes it, its K branch drawn from a seed."""
    shapes = ihcscoregan.build(Config(width, blocks), CARD.spec, None, "cpu").weights()
    layers = ihcscoregan._published_names(blocks)
    state = {theirs: torch.from_numpy(shapes[ours]) for theirs, ours in layers.items()}
    torch.save({"genA2B": state | {"keypoint_layer.weight": torch.zeros(4, 2)}}, path := tmp_path / "published.pt")
    return path


def test_an_imported_model_loads_and_says_where_it_came_from(tmp_path):
    card = import_published(published(tmp_path), "ihcscoregan", tmp_path / "mine")
    assert card == read_card(tmp_path / "mine")
    assert (card.name, card.version, card.polarity) == ("mine", "published", "unchecked")
    assert "published.pt" in card.description
    assert load_model(tmp_path / "mine", "cpu").spec == ihcscoregan.SPEC


def test_import_does_not_write_over_a_model(tmp_path, model):
    before = (model / "card.json").read_bytes()
    with pytest.raises(OutputError, match="already holds a model"):
        import_published(published(tmp_path), "ihcscoregan", model)
    assert (model / "card.json").read_bytes() == before


def test_a_family_without_published_weights_says_so(tmp_path):
    with pytest.raises(ModelError, match="the family 'hdab' has no published weights to import"):
        import_published(tmp_path / "x.pt", "hdab", tmp_path / "mine")


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("packed", [True, False])
def test_code_in_a_checkpoint_is_not_run(tmp_path, packed, protocol):
    content = {"genA2B": Evil(tmp_path / "it-ran")}
    path = tmp_path / "evil.pt"
    if packed:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ModelError, match=r"evil\.pt holds .*code.* and was not run"):
        import_published(path, "ihcscoregan", tmp_path / "mine")
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "mine").exists()


def checkpoint_bytes():
    torch.save({"genA2B": {"x": torch.zeros(3)}}, buffer := io.BytesIO())
    return buffer.getvalue()


def zip_bytes():
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("notes.txt", "nothing")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"these are no weights", b"\x80", b"\x80\x02K", b"PK\x03\x04", checkpoint_bytes()[:200], zip_bytes()],
    ids=["empty", "text", "pickle start", "pickle broken", "zip start", "truncated", "zip"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "file.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"file\.pt (is|holds) "):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.parametrize("path", ["nothing.pt", "."])
def test_a_checkpoint_that_is_not_there_is_refused(tmp_path, path):
    with pytest.raises(ModelError, match="no such file; wanted a torch checkpoint"):
        import_published(tmp_path / path, "ihcscoregan", tmp_path / "mine")


@pytest.mark.shared
@pytest.mark.parametrize("file", ["deepliif/G1.pt", "pyramidp2p/latest_net_G.pth", "tdkstain/latest_net_G.pth"])
def test_the_published_checkpoints_of_other_systems_are_refused(shared, tmp_path, file):
    with pytest.raises(ModelError, match=r"is not an IHCScoreGAN checkpoint|is a TorchScript program"):
        import_published(shared / "parity" / file, "ihcscoregan", tmp_path / "mine")


# The command


def run(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def test_list_has_a_line_for_each_model_and_each_family_without():
    header, *lines = [line.split("\t") for line in run("list").stdout.splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["name"] for row in rows if row["name"] != "-"] == list(model_names())
    assert {row["family"] for row in rows} == set(names())
    assert [row["name"] for row in rows if row["default"] == "default"] == [default_model()]


def test_info_says_what_the_card_says(model):
    measured = (Measurement("glioma", "F1", 0.85, "wsiscore evaluate cells"),)
    card = write_model(model, replace(CARD, tested_on=measured), {"x": np.zeros(1)})
    text = run("info", model).stdout
    for part in ("small", "A test.", "glioma: F1 0.85", "0.5 µm/px", "width=4, blocks=1", card.weights.sha256):
        assert part in text


def test_import_prints_the_folder(tmp_path):
    result = run("import", published(tmp_path), "--family", "ihcscoregan", "-o", tmp_path / "mine")
    assert result.stdout == f"{tmp_path / 'mine'}\n"
    assert read_card(tmp_path / "mine").config == asdict(SMALL)


@pytest.mark.parametrize("name", [[], ["list"], ["info"], ["import"]], ids=str)
def test_each_help_ends_in_an_example(name):
    last = run(*name, "--help").stdout.strip().split("\n\n")[-1]
    assert last.strip().startswith("Example: wsiscore models")


# Cards of earlier versions


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
