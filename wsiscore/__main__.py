"""The command ``wsiscore``, also as ``python -m wsiscore``."""

from __future__ import annotations

import os
import sys

__all__ = ["run"]


def run() -> None:
    """Run the command line; what ends it early is one line, from its first import on."""
    try:
        _open_standard_streams()
        from wsiscore.cli import main

        main(prog_name="wsiscore")
    except KeyboardInterrupt:
        sys.stderr.write("Aborted!\n")
        sys.exit(130)


def _open_standard_streams() -> None:
    """Open a stream that is closed, as by ``2>&-``: the next file opened would take its place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = os.O_RDONLY if number == 0 else os.O_WRONLY
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


if __name__ == "__main__":
    run()
