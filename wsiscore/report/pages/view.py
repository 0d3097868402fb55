"""The page that ``wsiscore view`` serves: a slide at full resolution with its cells."""

from __future__ import annotations

from typing import Any

from wsiscore.report.pages.rendering import render_page
from wsiscore.report.pages.viewer import script
from wsiscore.report.statistics import readable
from wsiscore.score import SlideScore

__all__ = ["view_page"]


def view_page(score: SlideScore, viewer: dict[str, Any], mpp: float) -> str:
    """Return the page of a score, for the viewer's data as `served` returns them and the slide's µm/px."""
    return render_page(
        "view.html.j2",
        title=f"{score.slide}, every cell",
        score=score,
        index=readable(score.total.ki67_index, decimals=1, unit="%"),
        mpp=mpp,
        viewer=viewer,
        viewer_script=script(),
    )
