"""``score.json`` and ``error.json``: written, and read again."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wsiscore.analysis.analyse import Analysis
from wsiscore.analysis.consensus import OtherModel
from wsiscore.analysis.flags import split_flags
from wsiscore.analysis.intervals import MIN_BLOCKS, ModelError, Sampling
from wsiscore.cells.edits import Edits
from wsiscore.files import replacing
from wsiscore.report.result import Entry, Result
from wsiscore.report.statistics import score_json
from wsiscore.score import Issue, SlideScore, Tally
from wsiscore.slide.readers.base import VirtualStain

__all__ = ["read_error", "read_score", "write_error", "write_quality", "write_score"]

_MOST_BYTES = 64 * 2**20  # 100,000 regions take half of it
_MOST_CELLS = 2**53  # whole numbers up to this are exact as float


def write_score(path: Path, score: SlideScore, analysis: Analysis | None = None) -> None:
    """Write `score_json` to a file, indented, and with it what the analysis of the cells gave.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    values = score_json(score) | (analysis.to_json() if analysis else {})
    text = json.dumps(values, indent=2, ensure_ascii=True, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="ascii")


def read_score(path: Path) -> SlideScore | None:
    """Return the score in a file that `write_score` wrote, of this version or an earlier one.

    None if the file cannot be read, is larger than 64 MiB, or holds anything else.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        return _score(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_quality(path: Path, result: Result) -> None:
    """Write the quality of a slide, if it is known, as `Quality.to_json`, indented.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    if result.quality is None:
        return
    text = json.dumps(result.quality.to_json(), indent=2, ensure_ascii=True, allow_nan=False)
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="ascii")


def write_error(path: Path, entry: Entry) -> None:
    """Write why a slide failed: ``slide``, ``model``, ``error``, ``path`` and ``case``.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = json.dumps(
        {"slide": entry.slide, "model": entry.model, "error": entry.error, "path": entry.path, "case": entry.case},
        indent=2,
    )
    with replacing(path) as part:
        part.write_text(text + "\n", encoding="ascii")


def read_error(path: Path) -> Entry | None:
    """Return the entry in a file that `write_error` wrote; None if the file holds anything else."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            return None
        values = json.loads(path.read_text(encoding="utf-8"))
        texts = [str(values[key]) for key in ("slide", "error", "model")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if not texts[1]:
        return None
    slide, case = (str(values.get(key) or "") for key in ("path", "case"))  # of this version
    return Entry(texts[0], None, texts[1], folder=path.parent.name, model=texts[2], path=slide, case=case)


def _score(values: dict[str, Any]) -> SlideScore:
    """Return the score; ValueError, KeyError or TypeError if that is none."""
    origin = values.get("virtual") if isinstance(values, dict) else None
    virtual = VirtualStain(**origin) if origin else None
    if virtual and not all(isinstance(value, str) for value in asdict(virtual).values() if value is not None):
        raise TypeError("a virtual stain is described by texts")
    slide, model, cutoff, by_roi = (values[key] for key in ("slide", "model", "cutoff", "by_roi"))
    left_out = values.get("excluded") or {}
    if not (
        isinstance(slide, str) and isinstance(model, str) and isinstance(by_roi, dict) and isinstance(left_out, dict)
    ):
        raise TypeError("slide and model are texts, and by_roi and excluded are objects")
    if not 0 < float(cutoff) < 100:
        raise ValueError(f"the cutoff is a percentage between 0 and 100, got {cutoff}")
    regions = {name: _tally(numbers) for name, numbers in by_roi.items()}
    excluded = {str(name): _area(area) for name, area in left_out.items()}
    path, sha256, case = (str(values.get(key) or "") for key in ("path", "sha256", "case"))
    return SlideScore(
        slide,
        model,
        _tally(values),
        regions,
        float(cutoff),
        virtual,
        _flags(values),
        _sampling(values),
        _model_error(values),
        excluded=excluded,
        path=path,
        sha256=sha256,
        case=case,
        issue=_issue(values.get("issue")),
        others=_others(values),
    )


def _issue(values: dict[str, Any] | None) -> Issue | None:
    if values is None:
        return None
    edits = values["edits"] and Edits(**values["edits"])
    if edits and not all(isinstance(n, int) and 0 <= n <= _MOST_CELLS for n in asdict(edits).values()):
        raise ValueError("edits are counts of cells")
    return Issue(str(values["author"]), str(values["date"]), edits)


def _others(values: dict[str, Any]) -> tuple[OtherModel, ...]:
    found = []
    for each in values.get("other_models") or ():
        n_positive, n, n_first = each["n_positive"], each["n"], each["n_first"]
        both, first, other, neither = each["matched"]
        for count in (n_positive, n, n_first, both, first, other, neither):
            if not isinstance(count, int) or not 0 <= count <= _MOST_CELLS:
                raise ValueError(f"a count of cells is a whole number, got {count!r:.40}")
        found.append(OtherModel(str(each["model"]), n_positive, n, n_first, (both, first, other, neither)))
    return tuple(found)


def _flags(values: dict[str, Any]) -> tuple[str, ...]:
    flags = values.get("flags", "")
    if not isinstance(flags, str):
        raise TypeError("flags are a text of words, joined by ;")
    return split_flags(flags)


def _sampling(values: dict[str, Any]) -> Sampling | None:
    effect, blocks, side = (values.get(key) for key in ("design_effect", "blocks", "block_um"))
    if effect is None:
        return None
    if not isinstance(blocks, int) or blocks < MIN_BLOCKS or not 1 <= float(effect) < math.inf:
        raise ValueError(f"a design effect is 1 or more, of {MIN_BLOCKS} blocks or more")
    lower_bound = "blocks_few" in _flags(values)
    return Sampling(math.nan if side is None else float(side), blocks, float(effect), lower_bound)


def _model_error(values: dict[str, Any]) -> ModelError | None:
    half, level, images = (values.get(f"model_{key}") for key in ("half_width", "level", "images"))
    if half is None or level is None or not isinstance(images, int):
        return None
    if not (0 <= float(half) < math.inf and 0 < float(level) < 1):
        raise ValueError(f"a half-width is a number of points at a level, got {half} at {level}")
    return ModelError(float(half), float(level), images)


def _tally(values: dict[str, Any]) -> Tally:
    positive, negative = values["positive"], values["negative"]
    for count in (positive, negative):
        if not isinstance(count, int) or not 0 <= count <= _MOST_CELLS:
            raise ValueError(f"a count of cells is a whole number, got {count!r:.40}")
    return Tally(positive, negative, _area(values["area_mm2"]))


def _area(value: Any) -> float:
    area_mm2 = float(value)
    if not (math.isfinite(area_mm2) and area_mm2 >= 0):
        raise ValueError(f"an area is a number of mm², got {area_mm2}")
    return area_mm2
