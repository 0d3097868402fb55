"""The command that issues a report again, with cells that somebody corrected."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsiscore.cells.rules import rule_flag
from wsiscore.score import CUTOFF

__all__ = ["reissue_command"]

_MOSAIC = "mosaic.ome.zarr"


def reissue_command(run: Mapping[str, Any], name: str) -> str:
    """Return the command that scores the same mosaic by the same rules, without its ``--cells`` and ``--author``.

    It is given in the folder that holds that of the results, so that these may be moved.

    Parameters
    ----------
    run
        What ``run.json`` says of the results.
    name
        Of their folder.
    """
    options = run.get("options", {})
    mosaic = os.path.normpath(Path(name, options.get("mosaic", _MOSAIC)))
    words = ["wsiscore", "score", mosaic]
    if "mosaic" in options:  # of other results
        words += ["-o", ".", *(["--name", name] if Path(mosaic).parent.name != name else [])]
    if roi := options.get("roi"):
        words += ["--roi", str(Path(roi).absolute())]
        words += [word for name in options.get("roi_classes", ()) for word in ("--roi-class", name)]
        words += [word for name in options.get("exclude_classes", ()) for word in ("--exclude-class", name)]
    if options.get("cutoff", CUTOFF) != CUTOFF:
        words += ["--cutoff", f"{options['cutoff']:g}"]
    words += [word for name, value in options.get("rules", {}).items() for word in (rule_flag(name), f"{value:g}")]
    words += ["--count", options["count"]] if options.get("count") else []
    words += ["--csv"] if options.get("csv") else []
    return shlex.join(words)
