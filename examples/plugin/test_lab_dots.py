"""The family passes the tests of every family; `contract.py` is copied from the folder tests of wsiscore."""

import pytest
from contract import GeneratorContract


@pytest.mark.parametrize("name", ["dots"])
class TestDots(GeneratorContract):
    """The tests of the contract."""
