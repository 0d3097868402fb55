"""Why a slide failed, kept in its folder: ``error.json``, and ``error.log`` where the program itself is at fault."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

from wsiscore.errors import CorrectionError, WsiscoreError
from wsiscore.files import locked, one_line, replacing
from wsiscore.models.card import read_card
from wsiscore.models.store import default_model, find_model
from wsiscore.mosaic import Mosaic
from wsiscore.pipeline.job import claim, stem_of
from wsiscore.pipeline.options import ScoreOptions
from wsiscore.report.json import write_error
from wsiscore.report.result import Entry

__all__ = ["ERROR", "ERROR_LOG", "failed"]

ERROR = "error.json"
ERROR_LOG = "error.log"


def failed(path: Path, options: ScoreOptions, error: Exception) -> Entry:
    """Return the entry of a slide that failed, after writing it to the slide's folder if that is possible.

    ``error.json`` has the reason; where it is none that wsiscore knows, ``error.log`` has the traceback. A correction
    that cannot be used is not written: the result that was to be corrected stands, also in the table of the cohort.
    """
    known = isinstance(error, WsiscoreError)
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # frees what the slide holds
        reason = f"there is not enough memory; use fewer --threads or a smaller --batch ({str(error) or 'MemoryError'})"
    else:
        reason = " ".join(str(error).split()) if known else f"unexpected {type(error).__name__}: {error}"
    name = one_line(options.name or stem_of(path))
    slide, case = str(path.absolute()), options.facts.case
    entry = Entry(name, None, one_line(reason), model=_model_name(path, options), path=slide, case=case)
    try:
        folder = claim(path.absolute(), options)
        if isinstance(error, CorrectionError):
            return replace(entry, slide=folder.name, folder=folder.name)
        with locked(folder.parent, folder.name):
            if not known:
                with replacing(folder / ERROR_LOG) as part:
                    part.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
                entry = replace(entry, error=f"{entry.error}; {folder / ERROR_LOG} has the traceback")
            entry = replace(entry, slide=folder.name, folder=folder.name)
            write_error(folder / ERROR, entry)
    except (WsiscoreError, OSError, ValueError, MemoryError):
        return replace(entry, folder="")
    return entry


def _model_name(path: Path, options: ScoreOptions) -> str:
    """Return the name of the model that was to score a slide, or made a mosaic."""
    try:
        if options.model is None and (path / "done").is_dir():
            return str(Mosaic.open(path).about["model"].get("name", "unnamed"))
        return read_card(find_model(options.model or default_model())).name
    except (WsiscoreError, OSError, ValueError, MemoryError):
        return options.model or default_model()
