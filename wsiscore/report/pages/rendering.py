"""Pages from templates: every text is escaped, and a name that a template does not get is an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wsiscore.files import replacing

__all__ = ["render_page", "write_page"]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("wsiscore.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters["css_string"] = _css_string
    return environment


def _css_string(text: str) -> Markup:
    """Return a text as a string of CSS in which nothing but letters and digits is unescaped."""
    return Markup('"{}"'.format("".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):x} " for c in text)))


def render_page(template: str, **values: Any) -> str:
    """Return a template of the package with its values, of which all but `markupsafe.Markup` is escaped."""
    return _environment().get_template(template).render(values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Render a template of the package and write the page.

    Parameters
    ----------
    path
        The file to write.
    template
        Its name in ``templates/``.
    values
        What the template shows. All but `markupsafe.Markup` is escaped.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    document = render_page(template, **values)
    with replacing(path) as part:
        part.write_text(document, encoding="utf-8", errors="backslashreplace")
