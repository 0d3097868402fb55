"""How many threads a process uses: those of its processors, or as many as it was given; and calls in threads."""

from __future__ import annotations

import contextvars
import os
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = ["in_threads", "set_threads", "submit", "threads"]

Job = TypeVar("Job")
Result = TypeVar("Result")

_SET_BY = (  # of libraries that are loaded later, and of processes that are started
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
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

    It holds for reading tiles, for torch and its BLAS, OpenCV and Zarr. A numpy that is loaded keeps the threads
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
    if zarr := sys.modules.get("zarr"):
        zarr.config.set({"threading.max_workers": n})


def in_threads(function: Callable[[Job], Result], jobs: Iterable[Job]) -> list[Result]:
    """Return `function` of each job, in their order, computed by as many threads as `threads` says.

    Parameters
    ----------
    function
        Worth a thread if it is mostly code that lets other threads run, as decoders and OpenCV do.
    jobs
        What it is called with, one at a time.

    Raises
    ------
    Exception
        What `function` raises of the first job that fails; those not begun then are dropped.
    """
    if threads() == 1:
        return [function(job) for job in jobs]
    with ThreadPoolExecutor(threads(), "wsiscore") as pool:
        futures = [submit(pool, function, job) for job in jobs]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def submit(pool: Executor, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Submit a call that sees the context variables of this one: warnings of a slide stay with the slide."""
    return pool.submit(contextvars.copy_context().run, function, *arguments)
