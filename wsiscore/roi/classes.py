"""Classes of annotations that are not scored, and their subtraction from the regions that are.

An annotator outlines the tumour and, inside it, what must not count: necrosis, a fold, stroma. `NOT_SCORED` is the one
list of the classes that are recognised.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import shapely

from wsiscore.errors import RoiError
from wsiscore.regions import Roi
from wsiscore.roi.outlines import polygonal

__all__ = ["NOT_SCORED", "excluded_class", "is_not_scored", "subtract", "tell_classes"]

NOT_SCORED: dict[str, tuple[str, ...]] = {
    "left out by the annotator": ("ignore", "ignored", "exclude", "excluded", "exclusion"),
    "necrosis": ("necrosis", "necrotic"),
    "artefact": ("artifact", "artefact", "fold", "tissue fold", "folded", "bubble", "air bubble", "dust", "debris"),
    "out of focus": ("blur", "blurred", "blurry", "out of focus"),
    "pen": ("pen", "ink", "marker"),
    "blood": ("hemorrhage", "haemorrhage", "blood"),
    "no tissue": ("background", "glass", "hole", "white space"),
    "stroma": ("stroma", "stromal"),
}
"""What is not scored, and how the names of its classes begin, in any case and with or without a plural ``s``."""

_BEGINS = re.compile(rf"(?:{'|'.join(word for words in NOT_SCORED.values() for word in words)})s?(?![^\W_])", re.I)
_LEAST_UM2 = 1e-3  # smaller remains of a subtraction are rounding

_log = logging.getLogger("wsiscore")


def is_not_scored(class_name: str) -> bool:
    """Return whether a class is in `NOT_SCORED`; each part of a derived class such as ``Tumor: Necrosis`` counts."""
    return any(_BEGINS.match(part.strip()) for part in class_name.split(":"))


def excluded_class(class_name: str) -> str:
    """Return a class name for GeoJSON that is recognised as not scored when the file is read again."""
    return class_name if is_not_scored(class_name) else f"Ignore*: {class_name}" if class_name else "Ignore*"


def subtract(rois: Sequence[Roi]) -> list[Roi]:
    """Cut the excluded regions out of the others.

    Parameters
    ----------
    rois
        Outlines, of which some are excluded.

    Returns
    -------
    list of Roi
        The regions to score without what is excluded, then the excluded parts of them: each excluded region cut to
        the regions it was drawn on, and no two of these overlap. Those on none of the regions are left out.

    Raises
    ------
    RoiError
        If nothing is left to score.
    """
    kept, out = [roi for roi in rois if not roi.excluded], [roi for roi in rois if roi.excluded]
    if not out:
        return kept
    drawn = shapely.union_all([roi.outline_um for roi in kept])
    parts: list[Roi] = []
    for roi in out:
        rest = shapely.intersection(roi.outline_um, drawn)
        for other in parts:
            rest = shapely.difference(rest, other.outline_um)
        if (part := polygonal(rest)).area > _LEAST_UM2:
            parts.append(replace(roi, outline_um=part))
    if not parts:
        return kept
    excluded = shapely.union_all([roi.outline_um for roi in parts])
    cut = [replace(roi, outline_um=polygonal(shapely.difference(roi.outline_um, excluded))) for roi in kept]
    left = [roi for roi in cut if roi.outline_um.area > _LEAST_UM2]
    if not left:
        names = ", ".join(sorted({roi.class_name or roi.name for roi in parts}))
        raise RoiError(f"nothing is left to score: regions of class {names} cover all others; redraw one of them")
    if lost := [repr(was.name) for was, now in zip(kept, cut, strict=True) if now.outline_um.area <= _LEAST_UM2]:
        _log.warning("regions that lie wholly in excluded ones are not scored: %s", ", ".join(lost[:12]))
    return [*left, *parts]


def tell_classes(source: str, rois: Sequence[Roi]) -> None:
    """Log which classes of a file are scored and which subtracted, if it has several."""
    scored = Counter(roi.class_name or "without class" for roi in rois if not roi.excluded)
    out = Counter(roi.class_name or roi.name for roi in rois if roi.excluded)
    if len(scored) + len(out) < 2 or not scored:
        return
    left_out = f"; not scored, and subtracted where they overlap: {_counted(out)}" if out else ""
    _log.warning(
        "%s has regions of several classes; scored: %s%s; choose with --roi-class and --exclude-class",
        source,
        _counted(scored),
        left_out,
    )


def _counted(names: Counter[str]) -> str:
    return ", ".join(f"{name} ({number})" for name, number in names.items())
