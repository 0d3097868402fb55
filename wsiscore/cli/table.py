"""Tables on standard output: tab separated, or JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import click

__all__ = ["json_lines", "print_json", "print_row", "print_table"]

json_lines = click.option(
    "--json", "json_lines", is_flag=True, help="Print JSON Lines: an object a line, its keys the columns."
)


def print_row(header: Sequence[str], row: Sequence[str], texts: Collection[str], *, as_json: bool) -> None:
    """Print a row of texts; as JSON all but the columns `texts` become numbers, or null where they are undefined."""
    if as_json:
        print_json({name: _value(text, is_text=name in texts) for name, text in zip(header, row, strict=True)})
    else:
        click.echo("\t".join(row))


def print_table(rows: Iterable[Sequence[str]], *, as_json: bool) -> None:
    """Print tables: each begins with its header, ends with the last row or an empty one, and has its names first."""
    header: Sequence[str] = ()
    for row in rows:
        if not as_json:
            click.echo("\t".join(row))
        elif header and row:
            print_row(header, row, header[:1], as_json=True)
        else:
            header = row


def print_json(values: Mapping[str, Any]) -> None:
    """Print an object on a line."""
    click.echo(json.dumps(values, allow_nan=False, ensure_ascii=False))


def _value(text: str, *, is_text: bool) -> int | float | str | None:
    if text in ("", "-") or (text == "nan" and not is_text):
        return None
    if is_text:
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
