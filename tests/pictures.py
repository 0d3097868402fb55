"""Small pictures for the tests of the evaluation, and whether the docs explain a table."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evaluation.md"

seeds = st.integers(0, 2**31)


def noise(seed, height=16, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=2)


def explained(header):
    page = PAGE.read_text(encoding="utf-8")
    return all(f"`{name}`" in page for name in header)
