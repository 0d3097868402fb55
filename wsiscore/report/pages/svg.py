"""Elements of SVG, with their texts and attributes escaped."""

from __future__ import annotations

from markupsafe import Markup

__all__ = ["element"]


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """Return an element.

    Parameters
    ----------
    tag
        Its name.
    children
        Other elements, and texts, which are escaped.
    attributes
        By name, with ``_`` for a hyphen and an ``_`` at the end dropped (``class_``). Numbers are written to two
        decimals; None leaves the attribute out.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _value(value))
        for name, value in attributes.items()
        if value is not None
    )
    if not children:
        return Markup("<{}{}/>").format(tag, written)
    return Markup("<{tag}{written}>{children}</{tag}>").format(
        tag=tag, written=written, children=Markup("").join(children)
    )


def _value(value: str | float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
