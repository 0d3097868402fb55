"""The hash of a slide covers every byte of every file, whatever their order."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import Darkness, as_model, whole, write_png
from slides import noise, shrink, write_aperio, write_zarr

from wsiscore.errors import SlideError
from wsiscore.inference import infer
from wsiscore.slide.content import sha256_of
from wsiscore.slide.readers import registry
from wsiscore.slide.slide import Slide

FILES = {"a.mrxs": b"head", "a/Data0.dat": b"pixels", "a/Slidedat.ini": b"[GENERAL]", "a/deep/empty": b""}


def write_all(folder: Path, contents: dict[str, bytes]) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


@given(data=st.data())
def test_the_order_of_files_and_their_folder_do_not_matter_but_every_byte_does(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / "content"
    files = write_all(folder, FILES)
    before = sha256_of(files)
    assert sha256_of(data.draw(st.permutations(files))) == before
    assert sha256_of(write_all(folder.with_name("moved"), FILES)) == before
    name = data.draw(st.sampled_from(sorted(FILES)))
    content = bytearray(FILES[name] or b"x")
    if FILES[name]:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    assert sha256_of(write_all(folder, FILES | {name: bytes(content)})) != before
    assert sha256_of(write_all(folder, {key: value for key, value in FILES.items() if key != name})) != before


def test_files_that_exchange_their_names_are_another_slide(tmp_path: Path) -> None:
    before = sha256_of(write_all(tmp_path / "s", {"a": b"1", "b": b"2"}))
    assert sha256_of(write_all(tmp_path / "s", {"a": b"2", "b": b"1"})) != before


def test_the_hash_of_one_file_is_that_of_sha256sum(tmp_path: Path) -> None:
    path = write_aperio(tmp_path / "a.svs", [noise(128, 100)])
    assert Slide(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.unlink()
    with pytest.raises(SlideError, match="cannot be read: No such file"):
        sha256_of([path])


def test_every_file_of_a_mirax_slide_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenSlide reads the pixels of another format here; the files beside it are those of MIRAX."""
    pixels = noise(200, 160)
    path = write_aperio(tmp_path / "a.mrxs", [pixels, shrink(pixels, 4)])
    about = {"openslide.vendor": "mirax", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
    monkeypatch.setattr(registry, "_aperio_by_tifffile", lambda scanner: scanner)
    monkeypatch.setattr(openslide.OpenSlide, "properties", about)
    others = [tmp_path / "a" / name for name in ("Data0.dat", "Index.dat", "sub/Slidedat.ini")]
    for other in others:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"content")
    (tmp_path / "b.dat").write_bytes(b"of another slide")
    assert sorted(Slide(path)._source.files()) == sorted([path, *others])
    found = {Slide(path).sha256}
    for other in others:
        other.write_bytes(b"Content")
        found.add(Slide(path).sha256)
    (tmp_path / "a" / "Data1.dat").touch()
    found.add(Slide(path).sha256)
    assert len(found) == 5


def test_every_file_of_a_zarr_image_counts(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a.zarr", axes="tczyx")
    before = Slide(tmp_path / "a.zarr").sha256
    assert Slide(tmp_path / "a.zarr").sha256 == before
    chunk = next(file for file in sorted((tmp_path / "a.zarr" / "1").rglob("*")) if file.name == "1")
    chunk.write_bytes(chunk.read_bytes() + b"x")
    assert Slide(tmp_path / "a.zarr").sha256 != before


@pytest.mark.shared
def test_a_dicom_slide_is_its_series_whichever_file_is_given(shared: Path, tmp_path: Path) -> None:
    data = (shared / "data" / "wsi" / "boxes_0.dcm").read_bytes()
    for name in ("level_0.dcm", "level_1.dcm"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "other.dcm").write_bytes(bytes(128) + b"DICM" + bytes(5000))
    (tmp_path / "notes.txt").write_text("not of the slide")
    first, second = (Slide(tmp_path / name) for name in ("level_0.dcm", "level_1.dcm"))
    assert set(first._source.files()) == {tmp_path / "level_0.dcm", tmp_path / "level_1.dcm"}
    assert first.sha256 == second.sha256
    (tmp_path / "level_1.dcm").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert Slide(tmp_path / "level_0.dcm").sha256 != first.sha256


@pytest.mark.parametrize("when", ["before it is hashed", "while it is inferred"])
def test_a_slide_that_changes_while_it_is_read_gives_no_result(tmp_path: Path, when: str) -> None:
    path, other = (write_png(tmp_path / name, noise(128, 100, seed)) for seed, name in enumerate(("a.png", "b.png")))

    class Replacing(Darkness):
        def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            if self.calls == 1:
                other.replace(path)
            return super().__call__(tiles)

    with Slide(path, mpp=0.5) as slide:
        if when.startswith("before"):
            other.replace(path)
        with pytest.raises(SlideError, match=r"a\.png changed while it was read"):
            infer(slide, whole(64, 50), as_model(Replacing()), tmp_path / "m.ome.zarr")
    assert not (tmp_path / "m.ome.zarr").exists()


def test_a_slide_that_is_only_touched_is_the_same(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", noise(128, 100))
    with Slide(path, mpp=0.5) as slide:
        before = slide.sha256
        os.utime(path, (1, 1))
        slide.refuse_changed()
        assert slide.sha256 == before
