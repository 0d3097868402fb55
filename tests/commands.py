"""Commands run within the tests' process."""

from __future__ import annotations

import csv
import io

from click.testing import CliRunner, Result

from wsiscore.cli import main


def run(*words: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=stdin, catch_exceptions=False)


def rows(done: Result) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(done.stdout), delimiter="\t"))
