"""SIGINT and SIGTERM: a training ends between two steps, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from wsiscore.errors import WsiscoreError

__all__ = ["StopRequest", "TrainingInterruptedError", "leave_signals_to_parent", "stop_at_once", "stop_between_steps"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterruptedError(WsiscoreError):
    """A signal ended the training; the same command continues it.

    Parameters
    ----------
    number
        Of the signal.
    text
        What was kept.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {text}; give the same command again to continue")
        self.number = number


class StopRequest:
    """Whether a signal asked the training to end."""

    def __init__(self) -> None:
        self.number = 0
        """Number of the signal; 0 without one."""


@contextmanager
def stop_between_steps() -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM for the training loop; a second SIGINT raises KeyboardInterrupt."""
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        if request.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = request.number or number

    with _handler(note):
        yield request


@contextmanager
def stop_at_once() -> Iterator[None]:
    """Raise TrainingInterruptedError at SIGINT or SIGTERM: for the work before and after the steps."""

    def leave(number: int, _: FrameType | None) -> None:
        raise TrainingInterruptedError(number, "finished steps and rendered fields are kept")

    with _handler(leave):
        yield


def leave_signals_to_parent(_: int = 0) -> None:
    """Ignore SIGINT and SIGTERM in a child process, which ends with its parent's work."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _handler(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Set the handler of both signals for a while; only the main thread can, others leave them as they are."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(number, signal.signal(number, handle)) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
