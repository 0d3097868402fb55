"""How many threads a process uses: those of its processors, or as many as it was given."""

from __future__ import annotations

import os
import sys

__all__ = ["set_threads", "threads"]

_SET_BY = (  # of libraries that are loaded later, and of processes that are started
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "DASK_NUM_WORKERS",
    "ZARR_THREADING__MAX_WORKERS",
)

_given: list[int] = []  # one number, or none


def threads() -> int:
    """Return how many threads this process may use: what `set_threads` was given, else its processors.

    These are no more than its affinity and the quota of its container or batch job allow, as dask counts them.
    """
    if _given:
        return _given[-1]
    from dask.system import cpu_count  # takes a while to import

    return int(cpu_count())


def set_threads(n: int | None) -> None:
    """Use `n` threads in this process from now on, and in those it starts; None leaves all as it is.

    It holds for reading tiles, for torch and its BLAS, OpenCV, Zarr and dask. A numpy that is loaded keeps the threads
    of its BLAS, which no step uses for long; ``OMP_NUM_THREADS`` before the start sets those too.
    """
    if n is None or _given[-1:] == [n]:
        return
    _given[:] = [n]
    os.environ.update(dict.fromkeys(_SET_BY, str(n)))
    import cv2

    cv2.setNumThreads(n)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(n)
    if dask := sys.modules.get("dask"):
        dask.config.set(num_workers=n)
    if zarr := sys.modules.get("zarr"):
        zarr.config.set({"threading.max_workers": n})
