"""A GPU gives the same maps as the CPU within half precision, and trains every family."""

import numpy as np
import pytest
import torch
from contract import small

from wsiscore.generators import ihcscoregan
from wsiscore.models.contract import Recipe
from wsiscore.models.registry import families, family

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module")
def tiles() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 3, 256, 256), np.uint8)


def test_mixed_precision_stays_close_to_the_cpu(tiles: np.ndarray) -> None:
    config, spec = ihcscoregan.Config(width=8), ihcscoregan.SPEC
    on_cpu = ihcscoregan.build(config, spec, None, "cpu")
    on_gpu = ihcscoregan.build(config, spec, on_cpu.weights(), "cuda")
    assert np.abs(on_gpu(tiles) - on_cpu(tiles)).mean() < 0.01


def test_a_tile_gives_the_same_maps_alone_and_in_a_batch(tiles: np.ndarray) -> None:
    generator = ihcscoregan.build(ihcscoregan.Config(width=8), ihcscoregan.SPEC, None, "cuda")
    alone = np.concatenate([generator(tile[None]) for tile in tiles])
    assert np.abs(generator(tiles) - alone).max() < 0.02


def recipe_and_batch(name: str) -> tuple[Recipe, dict[str, torch.Tensor]]:
    own = family(name)
    assert own.recipe is not None
    recipe = own.recipe(small(own.config), steps=2, seed=0, device="cuda", tiles=True, start=None)
    rng = np.random.default_rng(0)
    names = own.pairs or ("rgb", "colour", "maps", "mask_colour", "mask_maps", "tiles")
    images = {key: rng.integers(0, 256, (64, 64, 3), np.uint8) for key in names}
    images |= own.derived(images) if own.derived else {}
    return recipe, {key: torch.from_numpy(at.transpose(2, 0, 1)[None].copy()) for key, at in images.items()}


@pytest.mark.parametrize("name", [name for name, own in families().items() if own.recipe])
def test_every_family_trains(name: str) -> None:
    """Two steps: for a family with two stages, one of each."""
    recipe, batch = recipe_and_batch(name)
    for number in range(2):
        losses = recipe.step(batch, number)
        assert all(np.isfinite(float(loss)) for loss in losses.values())
    assert all(at.dtype == torch.uint8 for at in recipe.show(batch).values())
