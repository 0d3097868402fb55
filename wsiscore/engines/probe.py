"""Try an engine on a small network: ``python -m wsiscore.engines.probe ENGINE`` prints each precision that is right.

The reference is the evaluator of the ``onnx`` package, in NumPy. A result in bf16 or int8 may differ from it by
rounding, but not by what an overflow makes of it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from wsiscore.engines.graph import Graph
from wsiscore.engines.runtimes import COMPILERS, supports

__all__ = ["main"]

_TOLERANCE = {"fp32": 1e-4, "bf16": 0.05, "int8": 0.03}


def network(precision: str) -> bytes:
    """Return a network with each kind of layer, of fixed random weights."""
    rng = np.random.default_rng(0)
    shapes = {"one": (32, 3, 4, 4), "two": (32, 32, 3, 3), "three": (64, 4, 4, 4)}
    weights = {f"{name}.weight": rng.normal(0, 0.1, shape) for name, shape in shapes.items()}
    weights |= {f"{name}.bias": np.zeros(channels) for name, channels in (("one", 32), ("two", 32), ("three", 4))}
    ranges = {"one": (-1.0, 1.0), "two": (-1.0, 3.0), "three": (0.0, 3.0)} if precision == "int8" else None
    graph = Graph(weights, "tile", ranges)
    down = graph.leaky_relu(graph.conv(graph.tiles, "one", stride=2, padding=1, norm="norm"), 0.2)
    deep = graph.add(down, graph.conv(down, "two", padding=1, reflect=True))
    return graph.write(graph.up(graph.relu(graph.concat(down, deep)), "three"))


def main(engine: str) -> None:
    """Print the precisions in which an engine gives what the reference gives."""
    from onnx.reference import ReferenceEvaluator

    tiles = np.random.default_rng(1).integers(0, 256, (1, 3, 32, 32), np.uint8)
    for precision, tolerance in _TOLERANCE.items():
        if not supports(engine, precision):
            continue
        model = network(precision)
        expected: Any = ReferenceEvaluator(model).run(None, {"tiles": tiles})
        (found,) = COMPILERS[engine](model, precision, 1)({"tiles": tiles}).values()
        if np.abs(found - expected[0]).max() < tolerance:
            sys.stdout.write(f"{precision}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
