"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A busy machine is no failure; and what CI tries is the same each time, so that a red run can be seen again.
settings.register_profile("wsiscore", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("wsiscore")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real slides and published numbers, or skip."""
    folder = Path(os.environ.get("WSISCORE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip("the shared data folder is not here")
    return folder
