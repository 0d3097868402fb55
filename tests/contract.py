"""Tests that every generator family must pass, as a class to inherit."""

import json
import pickle
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from wsiscore.models.card import Card, read_card
from wsiscore.models.contract import SlideAdaptive
from wsiscore.models.registry import family
from wsiscore.models.store import load_model, write_model

TILE_SIZES = (256, 512, 1024)  # what the command line offers


def small(config_type):
    """Return the family's default configuration with small widths and few downsamplings."""
    names = [field.name for field in fields(config_type)]
    return config_type(
        **{name: 4 if name == "downsamplings" else 8 for name in names if name.endswith(("width", "downsamplings"))}
    )


def small_spec(own):
    """Return the family's spec, with smaller tiles if its small configuration has fewer downsamplings."""
    downsamplings = asdict(small(own.config)).get("downsamplings")
    return (
        own.spec
        if downsamplings is None
        else replace(own.spec, multiple_px=2**downsamplings, tile_px=128, margin_px=16)
    )


def tissue(batch, height, width, seed=0):
    """Return different tiles (B, 3, H, W) of brown and blue discs on a pale background."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    tiles = rng.normal(235, 4, (batch, 3, height, width))
    for tile in tiles:
        for _ in range(max(2, height * width // 1500)):
            row, column, radius = rng.uniform((0, 0, 4), (height, width, 9))
            colour = np.array([[120, 75, 50], [110, 120, 165]][rng.integers(2)]) + rng.normal(0, 8, 3)
            tile[:, (y - row) ** 2 + (x - column) ** 2 < radius**2] = colour[:, None]
    return np.clip(tiles, 0, 255).astype(np.uint8)


class GeneratorContract:
    """Laws of a generator family; a subclass or a parametrisation gives its ``name``."""

    @pytest.fixture
    def own(self, name):
        return family(name)

    @pytest.fixture
    def spec(self, own):
        return small_spec(own)

    @pytest.fixture
    def generator(self, own, spec):
        return own.build(small(own.config), spec, None, "cpu")

    @pytest.fixture
    def side(self, spec):
        """Return a small side that the family takes, to keep the tests fast."""
        multiple = spec.multiple_px
        return multiple * max(1, 64 // multiple)

    def test_the_spec_is_that_of_the_family(self, name, own, generator):
        assert generator.spec == small_spec(own)
        spec = own.spec
        assert spec.family == name
        assert 0.1 <= spec.mpp <= 2
        assert any(size % spec.multiple_px == 0 for size in TILE_SIZES)
        assert spec.dtype == "uint8"

    def test_the_config_is_frozen_and_json_ready(self, own):
        config = own.config()
        assert own.config.__dataclass_params__.frozen
        assert own.config(**asdict(config)) == config
        json.dumps(asdict(config))

    def test_former_option_names_refer_to_options_and_are_not_options(self, own):
        options = {field.name for field in fields(own.config)}
        assert set(own.renamed.values()) <= options
        assert not options & set(own.renamed)

    def test_a_tile_of_each_size_gives_maps_of_its_size(self, spec, generator):
        multiple = spec.multiple_px
        for height, width in [(multiple, multiple), (2 * multiple, multiple), (min(spec.tile_px, 512),) * 2]:
            maps = generator(tissue(1, height, width))
            assert maps.shape == (1, len(spec.channels), height, width)
            assert maps.dtype == np.float32

    def test_maps_lie_between_0_and_1_on_tissue_noise_and_bare_glass(self, generator, side):
        noise = np.random.default_rng(2).integers(0, 256, (2, 3, side, side), np.uint8)
        flat = np.broadcast_to(np.array([0, 255], np.uint8)[:, None, None, None], (2, 3, side, side))
        for tiles in (tissue(2, side, side), noise, flat):
            maps = generator(tiles)
            assert np.isfinite(maps).all()
            assert maps.min() >= 0
            assert maps.max() <= 1

    def test_a_tiles_maps_do_not_depend_on_its_batch(self, generator, side):
        tiles = tissue(5, side, side)
        together = generator(tiles)
        alone = np.concatenate([generator(tile[None]) for tile in tiles])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
        np.testing.assert_allclose(generator(tiles[::-1]), together[::-1], rtol=0, atol=1e-5)

    def test_the_maps_depend_on_the_tile(self, generator, side):
        maps = generator(tissue(2, side, side))
        assert not np.allclose(maps[0], maps[1], atol=1e-3)

    def test_the_same_tiles_give_the_same_maps_and_are_not_changed(self, own, generator, side):
        tiles = tissue(2, side, side)
        before = tiles.copy()
        first = generator(tiles)
        again = own.build(small(own.config), generator.spec, None, "cpu")(tiles)
        np.testing.assert_array_equal(first, again)
        np.testing.assert_array_equal(tiles, before)

    def test_the_memory_layout_does_not_matter(self, generator, side):
        tiles = tissue(2, side, side)
        as_read = np.ascontiguousarray(tiles.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        np.testing.assert_allclose(generator(as_read), generator(tiles), rtol=0, atol=1e-5)

    def test_what_was_measured_on_a_slide_is_restored_from_its_settings(self, own, spec, side):
        spec = replace(spec, norm="slide")
        generator, again = (own.build(small(own.config), spec, None, "cpu") for _ in range(2))
        if not isinstance(generator, SlideAdaptive):
            return
        tiles = tissue(2, side, side)
        adapted = generator.for_slide(tissue(3, side, side, seed=1))
        settings = json.loads(json.dumps(adapted.settings))
        np.testing.assert_array_equal(again.with_settings(settings)(tiles), adapted(tiles))

    def test_arrays_of_other_types_and_shapes_are_refused(self, own, generator, side):
        good = tissue(1, side, side)
        wrong = [good.astype(np.float32), good[0], good[:, :2], np.concatenate([good, good], axis=1)]
        if own.spec.multiple_px > 1:
            wrong += [good[..., :-1], good[:, :, 1:]]
        for tiles in wrong:
            with pytest.raises(ValueError, match=r"tiles?\b.*got"):
                generator(tiles)

    def test_a_model_written_and_loaded_gives_the_same_maps(self, name, own, side, tmp_path):
        config = small(own.config)
        spec = small_spec(own)
        if spec.rules:
            spec = replace(spec, rules=replace(spec.rules, threshold=0.625))
        generator = own.build(config, spec, None, "cpu")
        # Scaled, so that newly initialised weights would differ.
        weights = {key: value * 1.25 for key, value in generator.weights().items()}
        if weights:
            generator = own.build(config, spec, weights, "cpu")
        card = Card("one", name, "1", "A test.", "none", "nothing", spec, asdict(config))
        written = write_model(tmp_path / "one", card, weights or None)
        loaded = load_model(tmp_path / "one", device="cpu")
        assert loaded.spec == spec
        tiles = tissue(2, side, side)
        np.testing.assert_array_equal(loaded(tiles), generator(tiles))
        assert pickle.loads(pickle.dumps(read_card(tmp_path / "one"))).provenance() == written.provenance()

    def test_a_slide_adaptive_generator_is_reproducible_and_reports_its_settings(self, own, generator, side):
        if not isinstance(generator, SlideAdaptive):
            pytest.skip("this family does not adapt to the slide")
        sample = tissue(4, 4 * side, 4 * side)
        one, other = generator.for_slide(sample), generator.for_slide(sample)
        assert one.spec == generator.spec
        assert one.settings == other.settings
        assert json.loads(json.dumps(one.settings)) == one.settings
        tiles = tissue(3, side, side, seed=5)
        together = one(tiles)
        assert together.min() >= 0
        assert together.max() <= 1
        alone = np.concatenate([other(tile[None]) for tile in tiles])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
