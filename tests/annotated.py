"""Predicted and annotated cells for the tests of the evaluation."""

import numpy as np
import shapely
from hypothesis import strategies as st

from wsiscore.cells.table import Cells
from wsiscore.evaluation import Kind, TrueCells
from wsiscore.evaluation.detection.files import FoundCells, read_true_cells
from wsiscore.regions import Roi
from wsiscore.report.tables import write_cells_table

NEG, POS, OUT, ANY = Kind.NEGATIVE, Kind.POSITIVE, Kind.EXCLUDED, Kind.UNKNOWN

places = st.tuples(st.integers(0, 240), st.integers(0, 240)).map(lambda at: (at[0] / 8, at[1] / 8))
clouds = st.lists(places, max_size=25).map(lambda cloud: np.array(cloud, np.float64).reshape(-1, 2))
cells = st.lists(st.tuples(places, st.booleans()), max_size=25).map(
    lambda found: FoundCells(
        np.array([at for at, _ in found], np.float64).reshape(-1, 2), np.array([is_pos for _, is_pos in found], bool)
    )
)


def true_cells(kinds):
    return st.lists(st.tuples(places, st.sampled_from(kinds)), max_size=25).map(
        lambda true: TrueCells.of([at for at, _ in true], [kind for _, kind in true])
    )


# On a line, in µm, radius 6; L is a lymphocyte:
#   true   A+ 10   B+ 30   C- 50   D- 70   L 90
#   found  + 11    - 34    - 50            - 92   + 110   + 130
# Pairs: A–11 (right class), B–34 (wrong), C–50 (right). 92 lies on L: ignored. D is missed; 110, 130 are false.
#   TP 3, FP 2, FN 1: precision 3/5, recall 3/4, F1 6/(6+2+1) = 2/3; class accuracy 2/3
#   positive: found 11, 110, 130, true A, B: TP 1, FP 2, FN 1: 1/3, 1/2, F1 2/5
#   negative: found 34, 50 (92 ignored), true C, D: TP 1, FP 1, FN 1: 1/2, 1/2, F1 1/2
#   counts: true 2 + 2, found 3 + 2: errors 1 and 0; index true 50, found 60: error 10
ONE = (
    FoundCells(np.array([[x, 0.0] for x in (11, 34, 50, 92, 110, 130)]), np.array([1, 0, 0, 0, 1, 1], bool)),
    TrueCells.of([[x, 0.0] for x in (10, 30, 50, 70, 90)], [POS, POS, NEG, NEG, OUT]),
)
#   true   - 10   - 30   - 50   - 70
#   found  - 10   - 30   - 50   + 100   + 120
# TP 3, FP 2, FN 1; positive: TP 0, FP 2, FN 0; negative: TP 3, FP 0, FN 1
# counts: true 0 + 4, found 2 + 3: errors 2 and 1; index true 0, found 40: error 40
TWO = (
    FoundCells(np.array([[x, 0.0] for x in (10, 30, 50, 100, 120)]), np.array([0, 0, 0, 1, 1], bool)),
    TrueCells.of([[x, 0.0] for x in (10, 30, 50, 70)], [NEG] * 4),
)


def write_found(path, found: FoundCells):
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(found)
    columns = (np.full(n, 0.5), found.positive.astype(float), np.zeros(n), np.zeros(n, np.int64))
    roi = Roi("all", shapely.box(0, 0, 1, 1))
    write_cells_table(path, Cells(found.xy_um[:, 0], found.xy_um[:, 1], *columns), [roi])
    return path


def read_one(path, *, mpp=0.5, types=None, stem="a"):
    truth, _ = read_true_cells(path, [stem], mpp=mpp, types=types or {})
    order = np.lexsort(truth[stem].xy_um.T[::-1])
    return truth[stem].xy_um[order].tolist(), truth[stem].kind[order].tolist()


def feature(geometry, name=None, **more):
    properties = {"objectType": "annotation"} | ({"classification": {"name": name}} if name else {})
    return {"type": "Feature", "geometry": geometry, "properties": properties, **more}


SQUARE = {"type": "Polygon", "coordinates": [[[10, 10], [14, 10], [14, 14], [10, 14], [10, 10]]]}
