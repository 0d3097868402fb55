"""Jobs that do to their process what their names say; a light module, for each new process imports it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path


def work(job: tuple[Path, str]) -> str:
    """Return the name of a job, or do what it says: die at the first try or at every try, or raise."""
    folder, name = job
    first = not (folder / name).exists()
    (folder / name).touch()
    word, _, number = name.partition(" ")
    if word == "dies" or (word == "once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "eats":
        held = os.urandom(2**20) * 1280
        threading.Event().wait(timeout=None if held else 0)  # for the nanny to see it
    if word == "raises":
        raise TimeoutError("of its own")
    if word == "kills":
        os.kill(int(number), signal.SIGKILL)
        threading.Event().wait()
    return name


def lost(job: tuple[Path, str], error: Exception) -> str:
    """Return the name of a job and why it has no result."""
    return f"{job[1]}: {error}"


def die_at(event: str, part: str) -> None:
    """Make this process kill itself when a file operation is about to be done on a path with a part in its name."""

    def hook(what: str, arguments: tuple[object, ...]) -> None:
        if what == event and any(part in str(argument) for argument in arguments):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def set_version(version: str) -> None:
    """Make this process one of another version of wsiscore."""
    from wsiscore.pipeline import executors

    executors.__version__ = version


def move_to(folder: str) -> None:
    """Make another folder the working directory of this process."""
    os.chdir(folder)
