"""A network as a generator that an engine other than torch runs on the CPU."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from wsiscore.engines.choice import Engine, Precision
from wsiscore.engines.graph import LARGEST, LEAST, MEAN, SCALE, Graph, Node, Ranges, Statistics
from wsiscore.engines.runtimes import COMPILERS, Program, default_threads
from wsiscore.errors import ModelError
from wsiscore.models.contract import GeneratorSpec

__all__ = ["CompiledGenerator"]


class CompiledGenerator:
    """A network as a `Generator`; each thread runs its own tile, so that the maps do not depend on their number.

    Statistics of a slide are measured in fp32 whatever the precision.

    Parameters
    ----------
    spec
        What the generator reads and gives.
    describe
        Describes the network to a builder and returns its maps before tanh, as `Family.graph`.
    weights
        Name -> array.
    engine, precision
        What runs it, and in which precision.
    threads
        Tiles that are computed at once; by default as many as there are cores.

    Raises
    ------
    ModelError
        If the weights are not those of the network.
    """

    device = "cpu"

    def __init__(
        self,
        spec: GeneratorSpec,
        describe: Callable[[Graph], Node],
        weights: Mapping[str, npt.NDArray[Any]],
        engine: Engine,
        precision: Precision = "fp32",
        threads: int | None = None,
    ) -> None:
        if precision == "int8" and spec.norm == "tile":
            raise ModelError(
                f"int8 needs the ranges that are measured with the statistics of the slide, and {spec.family} takes "
                "those of each tile; give --norm slide or another --precision"
            )
        self.spec, self.engine, self.precision = spec, engine, precision
        self._describe, self._weights = describe, weights
        self._n_threads = threads or default_threads()
        self._statistics: Statistics = {}
        self._ranges: Ranges = {}
        self._workers = ThreadPoolExecutor(self._n_threads, "tile")
        self._program: Program | None = None
        self._lock = threading.Lock()  # it may be called from two threads at once
        self._graph("tile")

    def __call__(self, tiles: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn tiles into maps, as `Generator`.

        Raises
        ------
        ValueError
            If the tiles have another type, shape or size.
        """
        self.spec.check(tiles)
        with self._lock:
            if self._program is None:
                graph = self._graph(self._statistics or "tile", self._ranges or None)
                self._program = COMPILERS[self.engine](graph, self.precision, self._n_threads)
        if not len(tiles):
            return np.empty((0, len(self.spec.channels), *tiles.shape[2:]), np.float32)
        maps = np.empty((len(tiles), len(self.spec.channels), *tiles.shape[2:]), np.float32)
        list(self._workers.map(self._run, np.ascontiguousarray(tiles), maps))
        return maps

    def _run(self, tile: npt.NDArray[np.uint8], maps: npt.NDArray[np.float32]) -> None:
        assert self._program is not None
        (found,) = self._program({"tiles": tile[None]}).values()
        maps[:] = found[0]

    def weights(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the network's weights by name, as a model folder stores them."""
        return {name: np.array(value) for name, value in self._weights.items()}

    def in_precision(self, precision: Precision) -> CompiledGenerator:
        """Return the generator in another precision, not yet set for a slide."""
        return CompiledGenerator(self.spec, self._describe, self._weights, self.engine, precision, self._n_threads)

    @property
    def settings(self) -> dict[str, Any]:
        """What was measured on the slide, JSON-ready: the statistics of normalisation, and for int8 ranges."""
        if not self._statistics:
            return {}
        measured: dict[str, Any] = {"norm": {name: list(pair) for name, pair in self._statistics.items()}}
        return measured | (
            {"ranges": {name: list(pair) for name, pair in self._ranges.items()}} if self._ranges else {}
        )

    def for_slide(self, sample: npt.NDArray[np.uint8], weights: npt.NDArray[np.float32] | None = None) -> Self:
        """Return a generator whose normalisation is fixed by a sample of a slide, if `spec.norm` says so.

        Parameters
        ----------
        sample
            (N, 3, H, W) RGB in 0..255.
        weights
            (N, 1, H, W) in [0, 1]: how much each pixel counts; by default all alike.
        """
        if self.spec.norm == "tile":
            return self
        if weights is None:
            weights = np.ones((len(sample), 1, *sample.shape[2:]), np.float32)
        # One thread: sums that several divide depend on their number.
        measure = COMPILERS[self.engine](self._graph("measured"), "fp32", 1)
        inputs = {"tiles": np.ascontiguousarray(sample), "counts": np.require(weights, np.float32, ["C"])}
        found = {name: value.ravel() for name, value in measure(inputs).items()}
        means = [name.removesuffix(MEAN) for name in found if name.endswith(MEAN)]
        statistics = {name: (found[name + MEAN].tolist(), found[name + SCALE].tolist()) for name in means}
        layers = [name.removesuffix(LEAST) for name in found if name.endswith(LEAST)]
        ranges = {name: (float(found[name + LEAST].min()), float(found[name + LARGEST].max())) for name in layers}
        return self._fixed(statistics, ranges if self.precision == "int8" else {})

    def with_settings(self, settings: Mapping[str, Any]) -> Self:
        """Return the generator whose `settings` these were."""
        pairs = {key: {name: (a, b) for name, (a, b) in values.items()} for key, values in settings.items()}
        return self._fixed(pairs.get("norm", {}), pairs.get("ranges", {}))

    def _fixed(self, statistics: Statistics, ranges: Ranges) -> Self:
        twin = copy.copy(self)
        twin._statistics, twin._ranges, twin._program = statistics, ranges, None
        return twin

    def _graph(self, norm: Literal["tile", "measured"] | Statistics, ranges: Ranges | None = None) -> bytes:
        graph = Graph(self._weights, norm, ranges)
        maps = self._describe(graph)
        if maps.channels != len(self.spec.channels):
            raise ModelError(f"the weights give {maps.channels} maps, and there are {len(self.spec.channels)} channels")
        return graph.write(maps)
