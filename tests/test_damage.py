"""A damaged file of a mosaic is an error or is computed again; a mistake of the program is neither."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import zarr
from commands import rows, run
from hypothesis import given, settings
from hypothesis import strategies as st
from making import Darkness, as_model, whole, write_png

from wsiscore.cells.find import rules_of
from wsiscore.errors import DamagedMosaicError, MosaicError
from wsiscore.inference import infer
from wsiscore.mosaic import Mosaic
from wsiscore.slide.slide import Slide

SHARD, MEASURES, STATES = "0/c/0/0/0", "quality/c/0/0/0", "done/c/0/0"
TEXTS = ["zarr.json", "0/zarr.json", "quality/zarr.json", "done/zarr.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Slide, Path, dict[str, bytes]]:
    """Return a slide, a finished mosaic of it, and what its files hold."""
    folder = tmp_path_factory.mktemp("made")
    rgb = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    slide = Slide(write_png(folder / "noise.png", rgb), mpp=0.5)
    mosaic = computed(slide, folder / "m.ome.zarr")
    return slide, mosaic.path, files(mosaic.path)


@pytest.fixture(scope="module")
def levelled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a finished mosaic of several shards, with two levels written with them and one after, beside its slide."""
    folder = tmp_path_factory.mktemp("levelled")
    rgb = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)
    slide = Slide(write_png(folder / "noise.png", rgb), mpp=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiscore.pyramid._SHARD_PX", 96)
        patch.setattr("wsiscore.pyramid._SMALLEST_LEVEL_PX", 40)
        patch.setattr("wsiscore.pyramid._WITH_SHARDS", 2)
        yield infer(slide, whole(150, 100), as_model(Darkness()), folder / "m.ome.zarr").path


def computed(slide: Slide, path: Path) -> Mosaic:
    return infer(slide, whole(45, 30), as_model(Darkness()), path)


def files(mosaic: Path) -> dict[str, bytes]:
    return {str(path.relative_to(mosaic)): path.read_bytes() for path in sorted(mosaic.rglob("*")) if path.is_file()}


def read(path: Path) -> Mosaic:
    """Read all of a mosaic that numbers come from."""
    mosaic = Mosaic.open(path)
    if missing := mosaic.missing():
        raise MosaicError(f"{missing} tiles are missing")
    mosaic.measures()
    mosaic.read(0, 0, 90, 60)
    return mosaic


@st.composite
def damage(draw: st.DrawFn) -> tuple[str, str, float, int]:
    name = draw(st.sampled_from([SHARD, MEASURES, STATES, *TEXTS]))
    kinds = ["null", "nested"] if name in TEXTS else ["flipped", "longer"]
    return (
        name,
        draw(st.sampled_from(["deleted", "empty", "cut", *kinds])),
        draw(st.floats(0, 1, exclude_max=True)),
        draw(st.integers(0, 7)),
    )


@settings(max_examples=25)
@given(damage())
def test_damage_is_noticed_and_computed_again(
    made: tuple[Slide, Path, dict[str, bytes]], how: tuple[str, str, float, int]
) -> None:
    (slide, path, whole_bytes), (name, kind, where, bit) = made, how
    content = bytearray(whole_bytes[name])
    place = int(where * len(content))
    if kind == "flipped":
        content[place] ^= 1 << bit
    kept = {"empty": b"", "cut": bytes(content[:place].strip()), "longer": bytes(content) + b"0"}
    kept |= {"null": b"null", "nested": b"[" * 100_000}
    (path / name).unlink()
    if kind != "deleted":
        (path / name).write_bytes(kept.get(kind, bytes(content)))
    with pytest.raises(MosaicError):
        read(path)
    if name in (SHARD, MEASURES):
        with pytest.raises(DamagedMosaicError, match=name) as error:
            read(path)
        Mosaic(path, writable=True).reset(error.value.tiles)
    computed(slide, path)
    assert files(path) == whole_bytes


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("1/c/0/1/1", kind) for kind in ("deleted", "empty", "cut", "flipped")),
        *(("3/c/0/0/0", kind) for kind in ("deleted", "flipped")),
        *((name, "cut") for name in ("1/zarr.json", "3/zarr.json")),
    ],
)
def test_a_damaged_level_for_viewers_is_computed_again(tmp_path: Path, levelled: Path, name: str, kind: str) -> None:
    slide, path = Slide(levelled.parent / "noise.png", mpp=0.5), tmp_path / "m.ome.zarr"
    shutil.copytree(levelled, path)
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).unlink()
    if kind != "deleted":
        (path / name).write_bytes({"empty": b"", "cut": bytes(content[:20])}.get(kind, bytes(content)))
    model = as_model(Darkness())
    infer(slide, whole(150, 100), model, path)
    assert files(path) == files(levelled)
    assert model.generator.calls == 0


def test_a_mosaic_of_another_version_is_no_damage(made: tuple[Slide, Path, dict[str, bytes]], tmp_path: Path) -> None:
    slide, path, _ = made
    other = Path(shutil.copytree(path, tmp_path / "m.ome.zarr"))
    about = zarr.open_group(other, mode="r+").attrs
    about["wsiscore"] = {**Mosaic.open(path).about, "format": "wsiscore-mosaic-9"}
    before = files(other)
    with pytest.raises(MosaicError, match="has format 'wsiscore-mosaic-9'"):
        computed(slide, other)
    assert files(other) == before


@pytest.mark.parametrize(
    "rules", [None, [1], {}, {"threshold": -1, "radius_um": 3}, {"threshold": "x", "radius_um": 3}]
)
def test_foreign_rules_are_a_mosaic_error(made: tuple[Slide, Path, dict[str, bytes]], rules: object) -> None:
    mosaic = Mosaic.open(made[1])
    assert rules_of(mosaic)
    mosaic.about["rules"] = rules
    with pytest.raises(MosaicError, match="has rules that are none"):
        rules_of(mosaic)


def _mistake(*_: object) -> NoReturn:
    raise TypeError("a mistake of the program")


@pytest.mark.parametrize("name", ["0", "done", "quality"])
def test_a_mistake_of_the_program_is_no_damage(
    scored: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = Path(shutil.copytree(scored[0], tmp_path / "out"))
    mosaic, read_array = out / "rendered" / "mosaic.ome.zarr", zarr.Array.__getitem__
    before = files(mosaic)
    monkeypatch.setattr(
        zarr.Array, "__getitem__", lambda a, key: (_mistake if a.name == f"/{name}" else read_array)(a, key)
    )
    done = run("score", mosaic, "-o", tmp_path / "again")
    (row,) = rows(done)
    assert done.exit_code == 1
    assert row["call"].startswith("error: unexpected TypeError: a mistake of the program")
    assert "in _mistake" in next((tmp_path / "again").rglob("error.log")).read_text()
    assert files(mosaic) == before
