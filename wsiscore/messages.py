"""From which level on messages are shown on standard error."""

from __future__ import annotations

import logging

__all__ = ["show_messages", "shown_level"]


def show_messages(level: int) -> None:
    """Show messages from a level of `logging` on; the records of the slides get warnings at any level."""
    logging.basicConfig(format="wsiscore: %(message)s")
    logging.getLogger("wsiscore").setLevel(min(level, logging.WARNING))
    for handler in _own():
        handler.setLevel(level)


def shown_level() -> int:
    """Return the level that `show_messages` was given."""
    return min((handler.level for handler in _own()), default=logging.WARNING)


def _own() -> list[logging.Handler]:
    return [handler for handler in logging.getLogger().handlers if type(handler) is logging.StreamHandler]
