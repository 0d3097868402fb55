"""The command that issues a report again, with cells that somebody corrected."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wsiscore.cells.rules import rule_flag
from wsiscore.score import CUTOFF

__all__ = ["reissue_command"]

_MOSAIC = "mosaic.ome.zarr"


def reissue_command(folder: Path, run: Mapping[str, Any]) -> str:
    """Return the command that scores the same mosaic by the same rules, without its ``--cells`` and ``--author``.

    Parameters
    ----------
    folder
        Of the results.
    run
        What ``run.json`` says of them.
    """
    options, folder = run.get("options", {}), folder.absolute()
    own = folder / _MOSAIC
    mosaic = own if own.exists() else Path(options.get("mosaic") or own)
    words = ["wsiscore", "score", str(mosaic)]
    if mosaic != own:
        words += ["-o", str(folder.parent)]
        words += ["--name", folder.name] if mosaic.parent.name != folder.name else []
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
