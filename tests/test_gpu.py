"""On a GPU the same maps come out, up to the precision it works in."""

import numpy as np
import pytest
import torch

from wsiscore.generators import ihcscoregan

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


def test_a_batch_gives_what_its_tiles_give_alone(tiles: np.ndarray) -> None:
    generator = ihcscoregan.build(ihcscoregan.Config(width=8), ihcscoregan.SPEC, None, "cuda")
    alone = np.concatenate([generator(tile[None]) for tile in tiles])
    assert np.abs(generator(tiles) - alone).max() < 0.02
