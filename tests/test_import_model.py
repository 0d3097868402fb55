"""Published weights imported, and the command `wsiscore models`."""

import io
import os
import pickle
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from cards import CARD, SMALL
from click.testing import CliRunner

from wsiscore.cli.models import models as command
from wsiscore.errors import ModelError, OutputError
from wsiscore.generators import ihcscoregan
from wsiscore.generators.ihcscoregan import Config
from wsiscore.generators.ihcscoregan.published import published_names
from wsiscore.models.card import Measurement, read_card
from wsiscore.models.registry import names
from wsiscore.models.store import (
    default_model,
    import_published,
    load_model,
    model_names,
    write_model,
)
from wsiscore.networks.checkpoints import read_checkpoint


class Evil:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


def published(tmp_path, width=4, blocks=1):
    """Return a checkpoint as the published program writes it, its K branch drawn from a seed."""
    shapes = ihcscoregan.build(Config(width, blocks), CARD.spec, None, "cpu").weights()
    layers = published_names(blocks)
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
