"""Running an ONNX graph by OpenVINO or ONNX Runtime, so that no result depends on the number of threads.

Threads that share one tile divide its sums, and the last digits then depend on how many they are. Here each thread has
its own tile.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from wsiscore.threads import threads

__all__ = ["COMPILERS", "Program", "default_threads", "supports"]

Program = Callable[[Mapping[str, npt.NDArray[Any]]], dict[str, npt.NDArray[np.float32]]]
"""Runs a graph on its inputs by name, all of them of one shape each; returns its outputs by name, which stand until
this thread runs it again."""

_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


def default_threads() -> int:
    """Return the number of threads to compute with, no more than ``OMP_NUM_THREADS``, as in torch."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return min(threads(), int(given)) if given.isdecimal() and int(given) else threads()


def _openvino(model: bytes, precision: str, n_threads: int) -> Program:
    """Compile a graph by OpenVINO."""
    import openvino

    core, lock = openvino.Core(), threading.Lock()
    read = core.read_model(model)
    names = [output.any_name for output in read.outputs]
    settings = {
        "NUM_STREAMS": n_threads,
        "INFERENCE_NUM_THREADS": n_threads,
        "INFERENCE_PRECISION_HINT": _HINTS[precision],
    }
    compiled: dict[tuple[tuple[int, ...], ...], Any] = {}
    local = threading.local()

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        shapes = tuple(value.shape for value in inputs.values())
        with lock:  # graphs of fixed sizes run faster
            if shapes not in compiled:
                read.reshape({name: list(value.shape) for name, value in inputs.items()})
                compiled[shapes] = core.compile_model(read, "CPU", settings)
        requests = local.__dict__.setdefault("requests", {})
        if shapes not in requests:
            requests[shapes] = compiled[shapes].create_infer_request()
        results = requests[shapes].infer(dict(inputs), share_inputs=True, share_outputs=True)
        return {name: results[name] for name in names}

    return run


def _onnx(model: bytes, precision: str, n_threads: int) -> Program:  # noqa: ARG001 - all engines are called alike
    """Make a session of ONNX Runtime, which any number of threads may use."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[np.float32]]:
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

    return run


COMPILERS: Mapping[str, Callable[[bytes, str, int], Program]] = {"openvino": _openvino, "onnx": _onnx}
"""Name of an engine -> what compiles a graph, given a precision and a number of threads."""


def supports(engine: str, precision: str) -> bool:
    """Return whether an engine computes in a precision on this CPU, and not in another in its place."""
    if precision == "fp32":
        return True
    if engine == "onnx":  # of such graphs it computes none faster in fewer bits
        return False
    import openvino

    needed = {"bf16": "BF16", "int8": "INT8"}[precision]
    return needed in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
