"""Which generator families there are: the modules of `wsiscore.generators`, and plug-ins of other packages.

A package adds a family with one module that has a constant ``FAMILY`` and one entry point in the group
``wsiscore.generators``. A plug-in that cannot be imported is an error only where it is asked for.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from wsiscore.errors import ModelError
from wsiscore.models.contract import Family

__all__ = ["families", "family", "names"]

GROUP = "wsiscore.generators"
_FOLDER = Path(__file__).resolve().parents[1] / "generators"

_log = logging.getLogger("wsiscore")


def names() -> tuple[str, ...]:
    """Return the names of all families, built in and installed, importing none of them."""
    return tuple(sorted({*_built_in(), *_plugins()}))


def family(name: str) -> Family:
    """Import one family.

    Raises
    ------
    ModelError
        If no family has this name, or the plug-in that offers it is broken.
    """
    if name in _built_in():
        return _family_in(f"{GROUP}.{name}", name)
    if name not in _plugins():
        raise ModelError(f"no generator family is called {name!r}; there are: {', '.join(names())}")
    module = _plugins()[name]
    try:
        return _family_in(module, name)
    except (Exception, SystemExit) as error:
        raise ModelError(
            f"the family {name!r} cannot be imported from {module} ({error!r}); update or remove it"
        ) from error


def families() -> dict[str, Family]:
    """Import all families, by name; a plug-in that cannot be imported is left out with a warning."""
    found = {}
    for name in names():
        try:
            found[name] = family(name)
        except ModelError as error:
            _log.warning("%s", error)
    return found


@cache
def _built_in() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules([str(_FOLDER)]))


def _plugins() -> dict[str, str]:
    return {entry.name: entry.value for entry in entry_points(group=GROUP)}


def _family_in(module: str, name: str) -> Family:
    found = getattr(importlib.import_module(module), "FAMILY", None)
    if not isinstance(found, Family):
        raise ModelError(f"{module} has no constant FAMILY of the type wsiscore.models.contract.Family")
    if found.name != name:
        raise ModelError(f"{module} calls its family {found.name!r}, but is registered as {name!r}")
    return found
