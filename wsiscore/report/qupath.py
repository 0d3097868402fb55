"""The cells as GeoJSON that QuPath imports as detections."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from wsiscore.cells import Cells
from wsiscore.report.files import replacing

__all__ = ["write_cells"]

_POSITIVE = '{"name":"Positive","color":[250,62,62]}'  # QuPath's own names and colours
_NEGATIVE = '{"name":"Negative","color":[112,112,225]}'
_ROWS = 65_536  # cells turned into Python numbers at a time: memory does not grow with the slide


def write_cells(path: Path, cells: Cells, *, mpp: float) -> None:
    """Write the cells as a FeatureCollection of points, one feature a line.

    Each is a QuPath *detection* of class Positive or Negative with the measurements Confidence, Positivity and
    DAB OD mean (left out where undefined). The same cells always get the same ids.

    Parameters
    ----------
    path
        The file to write.
    cells
        Positions in micrometres from the slide's top left.
    mpp
        Micrometres per pixel of level 0. QuPath counts its pixels from the slide's top left as we do, also where
        the scanner does not.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as part, part.open("w", encoding="ascii", newline="\n") as file:
        file.write('{"type":"FeatureCollection","features":[')
        for number, feature in enumerate(_features(cells, mpp)):
            file.write(",\n" if number else "\n")
            file.write(feature)
        file.write("\n]}\n")


def _features(cells: Cells, mpp: float) -> Iterator[str]:
    stem, is_positive = _id_stem(cells), cells.positive
    for start in range(0, len(cells), _ROWS):
        rows = slice(start, start + _ROWS)
        columns = zip(
            (np.asarray(cells.x_um[rows], np.float64) / mpp).tolist(),
            (np.asarray(cells.y_um[rows], np.float64) / mpp).tolist(),
            is_positive[rows].tolist(),
            cells.confidence[rows].tolist(),
            cells.positivity[rows].tolist(),
            cells.dab_od[rows].tolist(),
            strict=True,
        )
        for number, (x, y, positive, confidence, positivity, dab_od) in enumerate(columns, start):
            measured = {"Confidence": confidence, "Positivity": positivity, "DAB OD mean": dab_od}
            known = {name: round(value, 3) for name, value in measured.items() if math.isfinite(value)}
            yield (
                f'{{"type":"Feature","id":"{stem}{number:012x}",'
                f'"geometry":{{"type":"Point","coordinates":[{round(x, 3)},{round(y, 3)}]}},'
                f'"properties":{{"objectType":"detection",'
                f'"classification":{_POSITIVE if positive else _NEGATIVE},'
                f'"measurements":{json.dumps(known, separators=(",", ":"))}}}}}'
            )


def _id_stem(cells: Cells) -> str:
    """Return all of a UUID (version 8, RFC 9562) but its last 12 digits, drawn from the positions."""
    digest = hashlib.sha256(np.ascontiguousarray(cells.x_um).tobytes())
    digest.update(np.ascontiguousarray(cells.y_um).tobytes())
    digits = digest.hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-8{digits[12:15]}-a{digits[15:18]}-"
