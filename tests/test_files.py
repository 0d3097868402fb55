"""Files are written whole or not at all, and are safe in a spreadsheet."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiscore.errors import OutputError
from wsiscore.files import plain_text, replacing, spreadsheet_text, write_png


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file"
    with replacing(path) as part:
        part.write_text("first")

    def fail_half_way():
        with replacing(path) as part:
            part.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_text() == "first"
    assert [child.name for child in path.parent.iterdir()] == ["file"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_named(tmp_path):
    def fill():
        with replacing(tmp_path / "file") as part:
            part.symlink_to("/dev/full")
            part.write_text("x" * 10_000)

    with pytest.raises(OutputError, match="No space left"):
        fill()
    assert not list(tmp_path.iterdir())


def test_a_picture_is_written_without_loss(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    write_png(tmp_path / "new" / "a.png", rgb)
    assert (cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1] == rgb).all()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_png(tmp_path / "file" / "a.png", rgb)


@given(st.text("'=+-@\t\r\n＝a1"))
def test_no_text_is_a_formula_and_each_reads_back(text):
    field = spreadsheet_text(text)
    assert not field.startswith(tuple("=+-@\t\r\n＝＋－＠"))
    assert field in (text, f"'{text}")
    assert plain_text(field) == text


@pytest.mark.parametrize("text", ["", "a=1", "it's", "'quoted'", "3 + 4", "µ"])
def test_harmless_texts_stay_as_they_are(text):
    assert spreadsheet_text(text) == text
