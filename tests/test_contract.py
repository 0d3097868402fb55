"""Every family, built in or installed, passes the tests of `contract`."""

import pytest
from contract import GeneratorContract

from wsiscore.models.registry import names


@pytest.mark.parametrize("name", names())
class TestEveryFamily(GeneratorContract):
    """The tests, for each family."""
