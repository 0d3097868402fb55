"""Charts as SVG: the index of a tally with its interval, the indices of a cohort, and a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from wsiscore.analysis.convention import ANY_BROWN, LIMITS, PLAINLY_BROWN, Convention
from wsiscore.report.pages.svg import element
from wsiscore.report.statistics import readable
from wsiscore.score import SlideScore, Tally

__all__ = ["histogram", "interval_bar", "interval_bars", "interval_plot", "limit_curve"]

_LOW_BAND, _HIGH_BAND = 5, 30  # percent; ASCO guideline 2022, recommendation 1.19


def interval_bar(
    tally: Tally,
    cutoff: float,
    *,
    interval: tuple[float, float] | None = None,
    name: str = "95 % interval",
    head: bool = False,
    ticks: bool = False,
) -> Markup:
    """Return an axis from 0 to 100 % with an interval as a bar, the index as a dot, and the cutoff as a line.

    Parameters
    ----------
    tally
        What to draw; the axis stays empty if its index is undefined.
    cutoff
        Percent.
    interval
        In percent, that of counting by default; not drawn if undefined.
    name
        What the interval is called.
    head, ticks
        Write the cutoff above, and the percentages below; else the bare bar for a table.
    """
    top, height = 22 * head, 16
    bottom, middle, thick = top + height, top + height / 2, height * 0.36
    line = f"{cutoff:g}%"
    drawn = [
        element("rect", class_="axis", x=0, y=top, width="100%", height=height),
        element("rect", class_="band", x=0, y=top, width=f"{_LOW_BAND}%", height=height),
        element("rect", class_="band", x=f"{_HIGH_BAND}%", y=top, width=f"{100 - _HIGH_BAND}%", height=height),
        element("line", class_="cutoff", x1=line, x2=line, y1=top - 5 * head, y2=bottom),
    ]
    low, high = tally.interval_95 if interval is None else interval
    if math.isfinite(low):
        span = {"x": f"{low:.2f}%", "width": f"{high - low:.2f}%"}
        drawn += [
            element("rect", class_="interval", y=middle - thick / 2, height=thick, **span),
        ]
    if tally.n:
        drawn.append(element("circle", class_="index", cx=f"{tally.ki67_index:.2f}%", cy=middle, r=height * 0.24))
    if head:
        drawn.append(element("text", f"cutoff {cutoff:g} %", class_="strong", x=line, y=13))
    if ticks:
        drawn += [element("text", f"{at}", x=f"{at}%", y=bottom + 15) for at in (0, 10, 20, 30, 50, 75, 100)]
    index, shown = (readable(*values, decimals=1, unit="%") for values in ((tally.ki67_index,), (low, high)))
    return element(
        "svg",
        *drawn,
        class_="bar labelled" if head or ticks else "bar",
        role="img",
        aria_label=f"Index {index}, {name} {shown}, cutoff {cutoff:g} %",
        height=bottom + 22 * ticks,
    )


def interval_bars(score: SlideScore) -> Markup:
    """Return a bar for each interval that is known: of counting, of sampling, of the model."""
    intervals = {"counting": score.total.interval_95, "sampling": score.sampling_95, "the model": score.model_interval}
    return Markup().join(
        interval_bar(score.total, score.cutoff, interval=ends, name=f"interval of {name}")
        for name, ends in intervals.items()
        if name == "counting" or math.isfinite(ends[0])
    )


def interval_plot(scores: Sequence[SlideScore]) -> Markup:
    """Return all intervals in one chart, from the highest index to the lowest, each with its cutoff."""
    ordered = sorted((score for score in scores if score.total.n), key=lambda score: -score.total.ki67_index)
    step, top = (14 if len(ordered) <= 40 else 5), 8
    bottom = top + step * len(ordered)
    drawn = [element("rect", class_="axis", x=0, y=top, width="100%", height=bottom - top)]
    for at in range(0, 101, 10):
        drawn.append(element("line", class_="grid", x1=f"{at}%", x2=f"{at}%", y1=top, y2=bottom))
        drawn.append(element("text", f"{at}", x=f"{at}%", y=bottom + 15))
    for place, score in enumerate(ordered):
        y, line = top + step * (place + 0.5), f"{score.cutoff:g}%"
        index, (low, high) = score.total.ki67_index, score.total.interval_95
        title = element("title", f"{score.slide}: {readable(index, decimals=1, unit='%')}")
        kind = "index virtual-stain" if score.virtual else "index"
        drawn += [
            element("line", class_="cutoff", x1=line, x2=line, y1=y - step / 2, y2=y + step / 2),
            element("line", class_="span", x1=f"{low:.2f}%", x2=f"{high:.2f}%", y1=y, y2=y),
            element("circle", title, class_=kind, cx=f"{index:.2f}%", cy=y, r=step / 4.5),
        ]
    label = f"Index and 95 % interval of {len(ordered)} slides, from the highest to the lowest"
    return element("svg", *drawn, class_="bar labelled", role="img", aria_label=label, height=bottom + 22)


def histogram(
    values: npt.NDArray[np.floating], positive: npt.NDArray[np.bool_], span: tuple[float, float], mark: float | None
) -> Markup:
    """Return stacked bars of a measurement: negative cells below, positive ones on top.

    Parameters
    ----------
    values
        One finite number a cell; what lies beyond `span` counts in the last bars.
    positive
        Whether each cell is positive.
    span
        Lowest and highest value of the axis.
    mark
        Where to draw a line, if anywhere.
    """
    bins, width, height = 40, 400, 130
    low, high = span
    at = np.clip(((values - low) / (high - low) * bins).astype(np.int64), 0, bins - 1)
    negative, both = np.bincount(at[~positive], minlength=bins), np.bincount(at, minlength=bins)
    most, step = int(both.max()), width / bins
    unit = height / max(most, 1)
    drawn = []
    for number in range(bins):
        below, above = float(negative[number] * unit), float(both[number] * unit)
        bar = {"x": number * step + 0.5, "width": step - 1}
        drawn.append(element("rect", class_="neg", y=height - below, height=below, **bar))
        drawn.append(element("rect", class_="pos", y=height - above, height=above - below, **bar))
    if mark is not None:
        x_mark = (mark - low) / (high - low) * width
        drawn.append(element("line", class_="cutoff", x1=x_mark, x2=x_mark, y1=0, y2=height))
    drawn.append(element("line", class_="base", x1=0, x2=width, y1=height, y2=height))
    for tick in np.linspace(low, high, 5).tolist():
        drawn.append(element("text", f"{tick:g}", x=(tick - low) / (high - low) * width, y=height + 16))
    drawn.append(element("text", f"{most:,} cells", class_="start", x=0, y=-5))
    label = f"Histogram of {len(values)} cells from {low:g} to {high:g}"
    box = f"-14 -18 {width + 28} {height + 38}"
    return element("svg", *drawn, class_="histogram", role="img", aria_label=label, viewBox=box)


def limit_curve(curve: Convention, cutoff: float) -> Markup:
    """Return the index by limit of DAB optical density, with the span of the convention, the limit used and the cutoff.

    Parameters
    ----------
    curve
        The index by limit.
    cutoff
        Percent.
    """
    width, height = 400, 150
    left, right = LIMITS[0], LIMITS[-1]
    top = max(10.0 * math.ceil(max(*curve.index, cutoff) / 10 + 0.01), 20.0)

    def x(limit: float) -> float:
        return (limit - left) / (right - left) * width

    def y(percent: float) -> float:
        return height * (1 - percent / top)

    points = " ".join(f"{x(limit):.1f},{y(index):.1f}" for limit, index in zip(LIMITS, curve.index, strict=True))
    drawn = [
        element("rect", class_="band", x=x(ANY_BROWN), y=0, width=x(PLAINLY_BROWN) - x(ANY_BROWN), height=height),
        element("line", class_="base", x1=0, x2=width, y1=height, y2=height),
        element("line", class_="cutoff", x1=0, x2=width, y1=y(cutoff), y2=y(cutoff)),
        element("text", f"cutoff {cutoff:g} %", class_="end", x=width, y=y(cutoff) - 4),
        element("polyline", class_="curve", points=points),
        element("text", "any brown", x=x(ANY_BROWN), y=-5),
        element("text", "plainly brown", x=x(PLAINLY_BROWN), y=-5),
    ]
    for limit, percent in ((ANY_BROWN, curve.span[1]), (PLAINLY_BROWN, curve.span[0])):
        drawn.append(element("circle", class_="index", cx=x(limit), cy=y(percent), r=4))
        drawn.append(element("text", f"{percent:.0f} %", class_="start strong", x=x(limit) + 7, y=y(percent) - 5))
    if left <= curve.used <= right:
        drawn.append(element("line", class_="used", x1=x(curve.used), x2=x(curve.used), y1=0, y2=height))
        word = "used" if curve.used_is_rule else "as counted"
        drawn.append(element("text", word, class_="strong", x=x(curve.used), y=height - 6))
    for tick in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        drawn.append(element("text", f"{tick:g}", x=x(tick), y=height + 16))
    for percent in (0, top / 2, top):
        drawn.append(element("text", f"{percent:g} %", class_="end", x=-6, y=y(percent) + 4))
    low, high = curve.span
    label = f"Index by limit of DAB optical density: {high:.0f} % from 0.10 on, {low:.0f} % from 0.30 on"
    box = f"-44 -22 {width + 60} {height + 44}"
    return element("svg", *drawn, class_="histogram limits", role="img", aria_label=label, viewBox=box)
