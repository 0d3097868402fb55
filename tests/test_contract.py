"""Every family, built in or installed, keeps the contract."""

import pytest
from contract import GeneratorContract

from wsiscore.models.registry import names


@pytest.mark.parametrize("name", names())
class TestEveryFamily(GeneratorContract):
    """The laws, for each family there is."""
