"""Commands, and the server of a slide, within the tests' process."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from click.testing import CliRunner, Result

from wsiscore.cli import main
from wsiscore.pipeline.view import serving
from wsiscore.report.server import SlideServer


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin, catch_exceptions=False)


def rows(done: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))


@contextmanager
def answering(*given: object) -> Iterator[SlideServer]:
    """Serve a slide as `serving` is given it, and answer, for the length of the block."""
    with serving(*given) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
