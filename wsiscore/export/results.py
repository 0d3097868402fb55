"""What lies in the folder of a scored slide, as the exporters need it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from wsiscore.errors import ExportError
from wsiscore.mosaic import Mosaic
from wsiscore.regions import Roi, scored
from wsiscore.report.json import read_score
from wsiscore.report.tables import cells_table
from wsiscore.roi.annotations import read_rois
from wsiscore.score import SlideScore

__all__ = ["SlideResults"]


@dataclass(frozen=True)
class SlideResults:
    """The results of one slide, as far as they are read.

    Parameters
    ----------
    folder
        Of the slide.
    score
        Its score.
    run
        What ``run.json`` says.
    """

    folder: Path
    score: SlideScore
    run: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> SlideResults:
        """Read the score and the record in a slide's folder; ExportError if it holds none."""
        score = read_score(folder / "score.json")
        if score is None:
            raise ExportError(
                f"{folder} holds no score; wanted the folder of a slide that `wsiscore score` has written, as "
                "wsiscore-out/a"
            )
        try:
            run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ExportError(f"{folder}/run.json cannot be read ({error}); score the slide again") from error
        if not isinstance(run, dict) or not all(isinstance(run.get(key), dict) for key in ("slide", "model")):
            raise ExportError(f"{folder}/run.json does not say what was scored; score the slide again")
        return cls(folder, score, run)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the slide's level 0."""
        return float(self.run["slide"]["mpp"])

    @property
    def made(self) -> str:
        """When it was issued, or else scored: ISO 8601 with the zone; empty if that is not known."""
        return self.score.issue.date if self.score.issue else str(self.run.get("finished") or self.run["started"])

    @cached_property
    def cells(self) -> pa.Table:
        """The table of cells, without points; ExportError if it cannot be read."""
        try:
            table = cells_table(self.folder)
            return table.drop_columns(["geometry"]) if "geometry" in table.column_names else table
        except (OSError, ValueError) as error:
            raise ExportError(f"the cells of {self.folder} cannot be read ({error}); score the slide again") from error

    @cached_property
    def regions(self) -> list[Roi]:
        """The regions that were scored; RoiError if they cannot be read."""
        return list(scored(read_rois(self.folder / "regions.geojson", mpp=self.mpp, exclude=())))

    @cached_property
    def mosaic(self) -> Mosaic:
        """The maps; MosaicError if they are not there."""
        return Mosaic.open(self.folder / "mosaic.ome.zarr")
