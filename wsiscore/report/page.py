"""What the pages share: the shell, words for numbers, and the bar of an index with its interval."""

from __future__ import annotations

import html
import math
from importlib.resources import files
from typing import Any

from wsiscore.score import SlideScore, Tally

__all__ = [
    "RESEARCH_USE",
    "escape",
    "includes_cutoff",
    "interval_bar",
    "interval_words",
    "number",
    "page",
    "percent",
    "table",
    "virtual_banner",
    "whole_percent",
]

RESEARCH_USE = (
    "For research use only. Not a diagnostic device: no result on this page may be used on its own to diagnose, to "
    "choose a treatment, or to decide whether anyone qualifies for a drug."
)
_LOW_BAND, _HIGH_BAND = 5, 30  # percent; ASCO guideline 2022, recommendation 1.19


def escape(value: object) -> str:
    """Return any value as text safe inside HTML and its attributes, and writable as UTF-8."""
    return html.escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def page(title: str, body: str) -> str:
    """Return a whole document: no script, no address outside itself, and a policy that forbids both."""
    style = files("wsiscore.report").joinpath("style.css").read_text(encoding="utf-8")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def number(value: float, decimals: int = 0) -> str:
    """Return a number with thousands separated, or a dash if it is undefined."""
    return f"{value:,.{decimals}f}" if math.isfinite(value) else "–"


def percent(value: float) -> str:
    """Return a percentage to one decimal, or a dash if it is undefined."""
    return f"{value:.1f} %" if math.isfinite(value) else "–"


def whole_percent(value: float, cutoff: float) -> str:
    """Return a percentage to the whole percent, finer only where rounding would carry it across the cutoff."""
    if not math.isfinite(value):
        return "–"
    shown = (f"{value:.{decimals}f}" for decimals in range(7))
    return f"{next((s for s in shown if (float(s) >= cutoff) == (value >= cutoff)), repr(value))} %"


def interval_words(tally: Tally) -> str:
    """Return the interval as ``12.3–15.6 %``, or a dash."""
    low, high = tally.interval_95
    return f"{low:.1f}–{high:.1f} %" if math.isfinite(low) else "–"


def includes_cutoff(score: SlideScore) -> bool:
    """Tell whether the cutoff lies within the 95 % interval of a slide that has a call."""
    low, high = score.total.interval_95
    return score.call in {"low", "high"} and low < score.cutoff <= high


def interval_bar(tally: Tally, cutoff: float, *, labels: bool = False) -> str:
    """Return an SVG axis from 0 to 100 % with the interval as a bar, the index as a dot, and the cutoff as a line.

    Parameters
    ----------
    tally
        What to draw; the axis stays empty if its index is undefined.
    cutoff
        Percent.
    labels
        Write the ticks, the cutoff and the bands below 5 % and above 30 %; else the bare bar for a table.
    """
    top, height = (22, 26) if labels else (0, 16)
    middle = top + height / 2
    drawn = [
        f'<rect class="axis" x="0" y="{top}" width="100%" height="{height}"/>',
        f'<rect class="band" x="0" y="{top}" width="{_LOW_BAND}%" height="{height}"/>',
        f'<rect class="band" x="{_HIGH_BAND}%" y="{top}" width="{100 - _HIGH_BAND}%" height="{height}"/>',
        f'<line class="cutoff" x1="{cutoff:g}%" x2="{cutoff:g}%" y1="{top - 5 * labels}" y2="{top + height}"/>',
    ]
    low, high = tally.interval_95
    if math.isfinite(low):
        thick = height * 0.36
        drawn += [
            f'<rect class="interval" x="{low:.2f}%" y="{middle - thick / 2:.1f}" '
            f'width="{high - low:.2f}%" height="{thick:.1f}"/>',
            f'<circle class="index" cx="{tally.ki67_index:.2f}%" cy="{middle:g}" r="{height * 0.24:.1f}"/>',
        ]
    if labels:
        drawn.append(f'<text class="strong" x="{cutoff:g}%" y="13">cutoff {cutoff:g} %</text>')
        drawn += [f'<text x="{at}%" y="{top + height + 15}">{at}</text>' for at in (0, 10, 20, 30, 50, 75, 100)]
    said = f"Index {percent(tally.ki67_index)}, 95 % interval {interval_words(tally)}, cutoff {cutoff:g} %"
    total = top + height + (22 if labels else 0)
    kind = "bar labelled" if labels else "bar"
    return f'<svg class="{kind}" role="img" aria-label="{escape(said)}" height="{total}">{"".join(drawn)}</svg>'


def table(pairs: dict[str, Any]) -> str:
    """Return names and values as a definition list; both are escaped."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs.items())
    return f"<dl>{items}</dl>"


def virtual_banner(words: str) -> str:
    """Return the banner of a page with a virtual stain on it; `words` say which, and are escaped."""
    return (
        '<p class="banner" role="note"><strong>Virtual stain.</strong> A virtual stain is a guess of a network; '
        f"not a stained slide. {escape(words)}</p>"
    )
