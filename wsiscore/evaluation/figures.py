"""Figures of an evaluation as standalone SVG.

The markup is written here and not by a plotting library: three plots need no further dependency, equal results give
equal bytes, and points carry their names as tooltips.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wsiscore.evaluation.cohort.agreement import auc, differences, roc
from wsiscore.evaluation.cohort.cases import ScoredCase, indices
from wsiscore.evaluation.detection.measures import CellMeasures

__all__ = ["case_figure", "cell_figure"]

_SIDE = 320  # side of a plot, px
_LEFT, _TOP, _RIGHT, _BOTTOM = 66, 46, 24, 58
_STYLE = (
    "text{font:13px 'Helvetica Neue',Helvetica,Arial,'Liberation Sans',sans-serif;fill:#222}.title{font-weight:600}"
    ".tick{font-size:12px;fill:#444}.frame{fill:none;stroke:#444}.grid{stroke:#e4e4e4}.guide{stroke:#666;"
    "stroke-dasharray:5 4;fill:none}.cutoff{stroke:#b3261e;stroke-width:1}.curve{fill:none;stroke:#21618c;"
    "stroke-width:2}.point{fill:#21618c;fill-opacity:.55;stroke:#123c58}.note{font-size:12px;fill:#444;"
    "paint-order:stroke;stroke:#fff;stroke-width:3px}"
)


@dataclass(frozen=True, slots=True)
class _Plot:
    """A square plot with linear axes."""

    left: float
    x_span: tuple[float, float]
    y_span: tuple[float, float]

    def x(self, value: float) -> float:
        return self.left + _SIDE * (value - self.x_span[0]) / (self.x_span[1] - self.x_span[0])

    def y(self, value: float) -> float:
        return _TOP + _SIDE * (self.y_span[1] - value) / (self.y_span[1] - self.y_span[0])

    def frame(self, title: str, x_label: str, y_label: str) -> str:
        """Return grid, ticks, labels and border."""
        middle, bottom = self.left + _SIDE / 2, _TOP + _SIDE
        drawn = []
        for tick in _ticks(self.x_span):
            drawn.append(self.line(tick, self.y_span[0], tick, self.y_span[1], "grid"))
            drawn.append(_text(f"{tick:g}", self.x(tick), bottom + 18, "tick", "middle"))
        for tick in _ticks(self.y_span):
            drawn.append(self.line(self.x_span[0], tick, self.x_span[1], tick, "grid"))
            drawn.append(_text(f"{tick:g}".replace("-", "−"), self.left - 8, self.y(tick) + 4, "tick", "end"))
        drawn.append(f'<rect class="frame" x="{self.left:g}" y="{_TOP}" width="{_SIDE}" height="{_SIDE}"/>')
        drawn.append(_text(title, self.left, _TOP - 16, "title", "start"))
        drawn.append(_text(x_label, middle, bottom + 44, "label", "middle"))
        rotation = f"rotate(-90 {self.left - 46:g} {_TOP + _SIDE / 2:g})"
        drawn.append(
            f'<text text-anchor="middle" x="{self.left - 46:g}" y="{_TOP + _SIDE / 2:g}" transform="{rotation}">'
            f"{html.escape(y_label)}</text>"
        )
        return "".join(drawn)

    def line(self, x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
        """Return a line between two points in data coordinates."""
        ends = f'x1="{self.x(x0):.1f}" y1="{self.y(y0):.1f}" x2="{self.x(x1):.1f}" y2="{self.y(y1):.1f}"'
        return f'<line class="{kind}" {ends}/>'

    def point(self, x: float, y: float, tooltip: str) -> str:
        """Return a dot with a tooltip."""
        title = f"<title>{html.escape(tooltip)}</title>"
        return f'<circle class="point" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="4">{title}</circle>'

    def note(self, text: str, line: int) -> str:
        """Return a line of text in the lower right; lines are counted from below."""
        return _text(text, self.left + _SIDE - 8, _TOP + _SIDE - 12 - 17 * line, "note", "end")


def cell_figure(images: Sequence[CellMeasures]) -> str:
    """Return a scatter plot of the predicted over the annotated index of each image, with the identity line."""
    shown = [image for image in images if image.true is not None and math.isfinite(image.index_error)]
    pairs = [(image.true.ki67_index, image.found.ki67_index, image) for image in shown if image.true]
    top = _round_up(max([value for pair in pairs for value in pair[:2]], default=100.0))
    plot = _Plot(_LEFT, (0.0, top), (0.0, top))
    drawn = [
        plot.frame(f"Ki67 index of {len(pairs)} images", "annotated, %", "found, %"),
        plot.line(0, 0, top, top, "guide"),
        *(
            plot.point(true, found, f"{image.slide}: {found:.1f} % found, {true:.1f} % annotated")
            for true, found, image in pairs
        ),
    ]
    if pairs:
        mean = sum(image.index_error for image in shown) / len(shown)
        text = f"mean absolute error {mean:.1f} points"
        drawn.append(_text(text, _LEFT + _SIDE, _TOP - 16, "note", "end"))
    return _svg(1, drawn, f"Found over annotated Ki67 index of {len(pairs)} images")


def case_figure(cases: Sequence[ScoredCase], cutoff: float) -> str:
    """Return the ROC curve of the index, and the Bland–Altman plot."""
    predicted, clinical = indices(cases)
    names = [case.name for case in cases if case.tally.n]
    drawn = [*_roc(predicted, clinical, cutoff), *_bland_altman(predicted, clinical, names)]
    return _svg(2, drawn, f"ROC curve and Bland–Altman plot of {len(names)} cases")


def _roc(predicted: np.ndarray, clinical: np.ndarray, cutoff: float) -> list[str]:
    label = clinical >= cutoff
    thresholds, fpr, tpr = roc(predicted, label)
    plot = _Plot(_LEFT, (0.0, 1.0), (0.0, 1.0))
    drawn = [
        plot.frame(f"ROC: clinical value at or above {cutoff:g} %", "false positive rate", "true positive rate"),
        plot.line(0, 0, 1, 1, "guide"),
    ]
    if label.all() or not label.any():
        return [*drawn, plot.note("undefined: all cases have one label", 0)]
    corners = " ".join(f"{plot.x(x):.1f},{plot.y(y):.1f}" for x, y in zip(fpr.tolist(), tpr.tolist(), strict=True))
    at = int((thresholds >= cutoff).sum()) - 1
    tooltip = f"called high at {cutoff:g} %: true positive rate {tpr[at]:.3f}, false positive rate {fpr[at]:.3f}"
    return [
        *drawn,
        f'<polyline class="curve" points="{corners}"/>',
        plot.point(float(fpr[at]), float(tpr[at]), tooltip),
        plot.note(f"AUC {auc(fpr, tpr):.3f}, n = {len(predicted)}", 1),
        plot.note(f"dot: index at or above {cutoff:g} %", 0),
    ]


def _bland_altman(predicted: np.ndarray, clinical: np.ndarray, names: Sequence[str]) -> list[str]:
    means, errors = (predicted + clinical) / 2, predicted - clinical
    limits = differences(predicted, clinical)
    finite = [value for value in (*errors.tolist(), limits.low, limits.high) if math.isfinite(value)]
    limit = _round_up(max((abs(value) for value in finite), default=10.0) * 1.1)
    top = _round_up(float(means.max()) if len(means) else 100.0)
    plot = _Plot(_LEFT + _SIDE + _RIGHT + _LEFT, (0.0, top), (-limit, limit))
    drawn = [
        plot.frame("Bland–Altman", "mean of index and clinical value, %", "index − clinical, points"),
        plot.line(0, 0, top, 0, "frame"),
        *(
            plot.point(x, y, f"{name}: {y:+.1f} points")
            for x, y, name in zip(means.tolist(), errors.tolist(), names, strict=True)
        ),
    ]
    for value, label in ((limits.bias, "bias"), (limits.low, "−1.96 SD"), (limits.high, "+1.96 SD")):
        if math.isfinite(value):
            drawn.append(plot.line(0, value, top, value, "cutoff" if label == "bias" else "guide"))
            offset = 14 if label == "−1.96 SD" else -5
            text = f"{label} {value:.1f}".replace("-", "−")
            drawn.append(_text(text, plot.left + _SIDE - 6, plot.y(value) + offset, "note", "end"))
    return drawn


def _ticks(span: tuple[float, float]) -> list[float]:
    """Return four to eight round values in an interval."""
    rough = (span[1] - span[0]) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if rough <= factor * power * 1.0001)
    first, last = math.ceil(span[0] / step - 1e-9), math.floor(span[1] / step + 1e-9)
    return [round(step * number, 9) + 0.0 for number in range(first, last + 1)]


def _round_up(value: float) -> float:
    """Return the least of 5, 10, 20, … 110 that is at least `value`."""
    return 5.0 if value <= 5 else min(10.0 * math.ceil(value / 10 - 1e-9), 110.0)


def _text(text: str, x: float, y: float, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{html.escape(text)}</text>'


def _svg(plots: int, drawn: Sequence[str], description: str) -> str:
    width, height = plots * (_LEFT + _SIDE + _RIGHT), _TOP + _SIDE + _BOTTOM
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(description)}" width="{width}" '
        f'height="{height}" viewBox="0 0 {width} {height}"><style>{_STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(drawn)}</svg>\n'
    )
