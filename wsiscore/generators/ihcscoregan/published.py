"""Reading the published program's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from wsiscore.errors import ModelError
from wsiscore.generators.ihcscoregan.config import Config
from wsiscore.networks.checkpoints import read_checkpoint

__all__ = ["published_names", "read_published"]


def read_published(path: Path) -> tuple[Config, dict[str, Any]]:
    """Read the encoder and K branch from the published program's checkpoint.

    Parameters
    ----------
    path
        ``IHCScoreGAN_*.pt``: a dict whose ``genA2B`` is the state dict of G.

    Raises
    ------
    ModelError
        If the file cannot be read, holds code, or is another checkpoint.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.get("genA2B") if isinstance(checkpoint, dict) else None
    first, last = "input.model.0.weight", "kp_output.model.1.weight"
    if not (isinstance(state, dict) and first in state and last in state):
        held = ", ".join(map(repr, list(checkpoint)[:3])) if isinstance(checkpoint, dict) else "no dict"
        raise ModelError(f"{path} is not an IHCScoreGAN checkpoint: it holds {held}; wanted 'genA2B'")
    blocks = len({name.split(".")[1] for name in state if name.startswith("kp_ext_f2.")})
    published = published_names(blocks)
    if missing := [name for name in published if not isinstance(state.get(name), Tensor)]:
        raise ModelError(f"{path} is not a complete IHCScoreGAN checkpoint: {missing[0]!r} is missing")
    weights = {ours: state[theirs].float().numpy() for theirs, ours in published.items()}
    return Config(width=state[first].shape[0], blocks=blocks), weights


def published_names(blocks: int) -> dict[str, str]:
    """Return the published name of each stored weight -> its name in this package."""
    layers = {"input.model.0": "encoder.down.0"}
    for level in (1, 2, 3):
        layers[f"down{level}.model.1"] = f"encoder.down.{level}.1"
        layers[f"kp_up{level}.model.1"] = f"decoder.up.{level - 1}.1"
    layers["kp_output.model.1"] = "decoder.up.3.1"
    for theirs, ours in (("ext_f1", "encoder.tail"), ("kp_ext_f2", "decoder.head")):
        for block in range(blocks):
            for from_, to in ((1, 0), (5, 3)):
                layers[f"{theirs}.{block}.conv_block.{from_}"] = f"{ours}.{block}.block.{to}"
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in layers.items() for kind in ("weight", "bias")}
