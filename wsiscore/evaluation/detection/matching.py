"""One-to-one matching of predicted and true cells.

Cells within the radius of each other are the edges of a bipartite graph. Its connected components are independent, so
each is solved by itself (`scipy.optimize.linear_sum_assignment`, the Hungarian algorithm). The result is the optimal
matching of all cells.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from wsiscore.errors import TruthError

__all__ = ["match"]

Points = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_LARGEST = 50_000_000  # predicted × true cells of one component: a cost matrix of 400 MB


def match(predicted_um: Points, true_um: Points, radius_um: float) -> tuple[Ints, Ints]:
    """Match predicted with true cells, one to one, within a radius.

    The matching has the greatest possible number of pairs, and among those the least sum of distances.

    Parameters
    ----------
    predicted_um, true_um
        (N, 2) and (M, 2): x and y in micrometres.
    radius_um
        Greatest distance of a pair, inclusive.

    Returns
    -------
    tuple of array
        Indices of the predicted and of the true cell of each pair, ascending in the first.

    Raises
    ------
    TruthError
        If the radius is so large that a component has too many cells.
    """
    none = np.empty(0, np.int64)
    if not len(predicted_um) or not len(true_um):
        return none, none
    near = KDTree(predicted_um).sparse_distance_matrix(KDTree(true_um), radius_um, output_type="ndarray")
    rows, columns, distances = near["i"].astype(np.int64), near["j"].astype(np.int64), near["v"]
    pairs = [
        _assign(rows[edges], columns[edges], distances[edges], radius_um)
        for edges in _components(rows, columns, len(predicted_um), len(true_um))
    ]
    if not pairs:
        return none, none
    matched = np.concatenate(pairs, axis=1)
    predicted, true = matched[:, np.argsort(matched[0])]
    return predicted, true


def _components(rows: Ints, columns: Ints, n_rows: int, n_columns: int) -> list[Ints]:
    """Return the indices of the edges of each connected component of the graph."""
    n = n_rows + n_columns
    graph = coo_array((np.ones(len(rows), np.int8), (rows, n_rows + columns)), shape=(n, n))
    _, component_of = connected_components(graph, directed=False)
    of_edge = component_of[rows]
    order = np.argsort(of_edge, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(of_edge[order])) + 1) if len(order) else []


def _assign(rows: Ints, columns: Ints, distances: Points, radius_um: float) -> Ints:
    """Return (2, pairs) of one component; a pair without an edge costs more than all edges together."""
    if len(rows) == 1:
        return np.stack([rows, columns])
    own_rows, at_row = np.unique(rows, return_inverse=True)
    own_columns, at_column = np.unique(columns, return_inverse=True)
    shape = len(own_rows), len(own_columns)
    if shape[0] * shape[1] > _LARGEST:
        raise TruthError(
            f"{shape[0]:,} predicted and {shape[1]:,} true cells are connected within {radius_um:g} µm of each other; "
            "choose a --radius below the distance of neighbouring nuclei"
        )
    cost = np.full(shape, radius_um * (min(shape) + 1), np.float64)
    cost[at_row, at_column] = distances
    chosen = np.zeros(shape, np.bool_)
    chosen[linear_sum_assignment(cost)] = True
    kept = chosen[at_row, at_column]
    return np.stack([rows[kept], columns[kept]])
