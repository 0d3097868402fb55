"""The page of a cohort: every slide with its index, its interval and its call, or why it failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from wsiscore.files import replacing
from wsiscore.report.page import (
    RESEARCH_USE,
    escape,
    includes_cutoff,
    interval_bar,
    interval_words,
    number,
    page,
    percent,
    table,
    virtual_banner,
)
from wsiscore.score import SlideScore

__all__ = ["Entry", "write_index"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One slide of a cohort.

    Parameters
    ----------
    slide
        What it is called.
    score
        Its score, or None if it failed.
    error
        Why it failed, on one line.
    folder
        Where its report is, relative to the page; empty if there is none.
    model
        The model that was to score it, if it failed.
    """

    slide: str
    score: SlideScore | None
    error: str = ""
    folder: str = ""
    model: str = ""


def write_index(path: Path, entries: Sequence[Entry]) -> None:
    """Write the page of a cohort, slides in the order given.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    scores = [entry.score for entry in entries if entry.score is not None]
    title = f"Ki67 index of {len(entries)} slide{'s' * (len(entries) != 1)}"
    models = ", ".join(sorted({score.model for score in scores}))
    body = f"""<header><p class="kind">Ki67 index, cohort<span>Research use only</span></p><h1>{title}</h1>
<p>{escape(f"Model: {models}") if models else "No slide was scored."}</p></header>{_banner(scores)}
<section class="counts">{table(_counts(entries, scores))}</section>
{_plot(scores)}
<section><h2>Slides</h2><div class="wide"><table>
<thead><tr><th scope="col">Slide</th><th scope="col">Index</th><th scope="col">95 % interval</th>
<th scope="col" class="axis">0 to 100 %</th><th scope="col">Cells</th>
<th scope="col">Area, mm²</th><th scope="col" class="words">Call</th>
<th scope="col" class="words">Files</th></tr></thead>
<tbody>{"".join(_row(entry) for entry in entries)}</tbody></table></div>
<p class="note">Intervals are those of counting alone (Wilson, 95 %). "Indeterminate" marks a call whose interval
includes the cutoff. A call says on which side of the chosen cutoff the index lies, and no more.</p></section>
<footer><p>{RESEARCH_USE}</p></footer>"""
    with replacing(path) as part:
        part.write_text(page(title, body), encoding="utf-8")


def _banner(scores: Sequence[SlideScore]) -> str:
    painters = Counter(score.virtual.model for score in scores if score.virtual)
    if not painters:
        return ""
    by = ", ".join(f"{n} painted by {model}" for model, n in sorted(painters.items()))
    return virtual_banner(f"Virtual here: {painters.total()} of {len(scores)} scored slides, {by}; each is marked.")


def _counts(entries: Sequence[Entry], scores: Sequence[SlideScore]) -> dict[str, int]:
    calls = Counter(score.call for score in scores)
    return {
        "Low": calls["low"],
        "High": calls["high"],
        "Indeterminate among these": sum(includes_cutoff(score) for score in scores),
        "Insufficient": calls["insufficient"],
        "No cells": calls["no cells"],
        "Failed": len(entries) - len(scores),
    }


def _row(entry: Entry) -> str:
    name = escape(entry.slide)
    score = entry.score
    if score is None:
        return (
            f'<tr class="failed"><th scope="row">{name}</th><td>–</td><td>–</td><td></td><td>–</td><td>–</td>'
            f'<td colspan="2"><strong>Failed:</strong> {escape(entry.error)}</td></tr>'
        )
    files = ""
    if entry.folder:
        folder = escape(quote(entry.folder.encode("utf-8", "surrogateescape")))
        name = f'<a href="{folder}/report.html">{name}</a>'
        files = f'<a href="{folder}/overlay.jpg">overlay</a> <a href="{folder}/cells.geojson">cells</a>'
    if score.virtual:
        name += f'<br><span class="virtual">virtual stain by {escape(score.virtual.model)}</span>'
    total = score.total
    call = escape(score.call) + (", indeterminate" if includes_cutoff(score) else "")
    return (
        f'<tr><th scope="row">{name}</th><td>{percent(total.ki67_index)}</td><td>{interval_words(total)}</td>'
        f"<td>{interval_bar(total, score.cutoff)}</td><td>{number(total.n)}</td><td>{number(total.area_mm2, 3)}</td>"
        f'<td class="words">{call}</td><td class="words">{files}</td></tr>'
    )


def _plot(scores: Sequence[SlideScore]) -> str:
    """Return all intervals in one picture, from the highest index to the lowest, with each one's cutoff."""
    known = sorted((score for score in scores if score.total.n), key=lambda score: -score.total.ki67_index)
    if len(known) < 2:
        return ""
    step, top = (14 if len(known) <= 40 else 5), 8
    height = top + step * len(known)
    drawn = [f'<rect class="axis" x="0" y="{top}" width="100%" height="{height - top}"/>']
    drawn += [
        f'<line class="grid" x1="{at}%" x2="{at}%" y1="{top}" y2="{height}"/>'
        f'<text x="{at}%" y="{height + 15}">{at}</text>'
        for at in (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    ]
    for place, score in enumerate(known):
        y = top + step * (place + 0.5)
        low, high = score.total.interval_95
        kind = "index painted" if score.virtual else "index"
        drawn.append(
            f'<line class="cutoff" x1="{score.cutoff:g}%" x2="{score.cutoff:g}%" y1="{y - step / 2:g}" '
            f'y2="{y + step / 2:g}"/><line class="span" x1="{low:.2f}%" x2="{high:.2f}%" y1="{y:g}" y2="{y:g}"/>'
            f'<circle class="{kind}" cx="{score.total.ki67_index:.2f}%" cy="{y:g}" r="{step / 4.5:.1f}">'
            f"<title>{escape(score.slide)}: {percent(score.total.ki67_index)}</title></circle>"
        )
    said = f"Index and 95 % interval of {len(known)} slides, from the highest to the lowest"
    painted = "; open: virtual stains" if any(score.virtual for score in known) else ""
    return (
        f'<section><h2>Index and 95 % interval</h2><svg class="bar labelled" role="img" aria-label="{said}" '
        f'height="{height + 22}">{"".join(drawn)}</svg><p class="note">Percent; one line a slide, from the highest '
        f"index to the lowest; dashed: the cutoff{painted}.</p></section>"
    )
