"""A virtual stain that lost or changed a file says so, and is never read as white."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import shapely
from making import Darkness, as_model, whole
from PIL import Image
from slides import noise

from wsiscore.errors import SlideError
from wsiscore.inference import infer
from wsiscore.regions import Region, Roi
from wsiscore.slide.slide import Slide


@pytest.fixture
def mosaic(tmp_path: Path) -> Path:
    """Return a finished virtual stain of several shards and levels, white at its right."""
    pixels = noise(200, 150)
    pixels[:, 96:] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Slide(tmp_path / "a.png", mpp=0.5) as slide, pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsiscore.pyramid._SHARD_PX", 96)
        patch.setattr("wsiscore.pyramid._SMALLEST_LEVEL_PX", 60)
        infer(slide, whole(100, 75), as_model(Darkness(tile_px=64, margin_px=8, image=True)), tmp_path / "v.ome.zarr")
    return tmp_path / "v.ome.zarr"


def test_a_missing_shard_is_an_error_of_that_read_at_every_level(mosaic: Path) -> None:
    with Slide(mosaic) as slide:
        before = slide.read(Region(0, 0, 200, 150, 0.5))
        assert len(slide.level_mpp) > 1
        for level, mpp in enumerate(slide.level_mpp):
            shard = mosaic / str(level) / "c" / "0" / "0" / "0"
            kept = shard.read_bytes()
            shard.unlink()
            with pytest.raises(SlideError, match=rf"damaged: {level}/c/0/0/0 is missing"):
                slide.read(Region(3, 3, 8, 8, mpp))
            shard.write_bytes(kept)
        (mosaic / "0" / "c" / "0" / "0" / "0").unlink()
        assert np.array_equal(slide.read(Region(150, 100, 50, 50, 0.5)), before[100:, 150:])


def test_a_changed_byte_of_a_shard_is_an_error_of_that_read(mosaic: Path) -> None:
    shard = mosaic / "0" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with Slide(mosaic) as slide:
        with pytest.raises(SlideError, match="cannot be decoded"):
            slide.read(Region(3, 3, 8, 8, 0.5))
        slide.read(Region(150, 100, 50, 50, 0.5))


def test_what_was_never_written_is_white(tmp_path: Path) -> None:
    Image.fromarray(noise(200, 150)).save(tmp_path / "a.png")
    roi = [Roi("corner", shapely.box(0, 0, 10, 10))]
    with Slide(tmp_path / "a.png", mpp=0.5) as slide:
        infer(slide, roi, as_model(Darkness(tile_px=64, margin_px=8, image=True)), tmp_path / "v.ome.zarr")
    assert (Slide(tmp_path / "v.ome.zarr").read(Region(150, 100, 50, 50, 0.5)) == 255).all()
