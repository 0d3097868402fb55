"""How the slides of a run are worked on: one after the other, by local processes, or over a dask cluster.

Each engine gives the same results in the same order. A job whose process dies is tried again, and then is one lost
job: `lost` makes its result, and the others go on.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from wsiscore import __version__
from wsiscore.errors import WsiscoreError

__all__ = ["Dask", "Engine", "Processes", "Serial", "open_engine"]

_ANSWERS_WITHIN = "10s"  # a scheduler that is there
_POLL_S = 2.0
_PATIENCE_S = 60.0  # without any worker
_AHEAD = 2  # jobs a process has waiting, so that an endless pipe is not read to its end first

_log = logging.getLogger("wsiscore")

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Protocol):
    """What runs jobs."""

    local: bool
    """Whether jobs run in this process, and may show progress on its terminal."""

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, str], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, in the order given, each as soon as it and those before it are done.

        Parameters
        ----------
        function, jobs
            Both can be pickled.
        lost
            Makes the result of a job whose process died, from the job and the reason.
        """


class Serial:
    """One job after the other, in this process; jobs are taken one by one, so that a pipe may still be filling."""

    local = True

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, str], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, as `Engine.map`; none is lost without this process."""
        del lost
        return map(function, jobs)


class Processes:
    """Jobs side by side, in processes of this machine.

    Parameters
    ----------
    n
        Number of processes.
    """

    local = False

    def __init__(self, n: int) -> None:
        self.n = n

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, str], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, as `Engine.map`."""
        todo, pending = iter(jobs), deque[Job]()
        while True:
            try:
                yield from self._until_broken(function, todo, pending)
                return
            except (
                BrokenProcessPool
            ):  # which job's process it was is not known: the first is tried alone, the others again
                yield self._alone(function, pending.popleft(), lost)

    def _until_broken(
        self, function: Callable[[Job], Result], todo: Iterator[Job], pending: deque[Job]
    ) -> Iterator[Result]:
        """Yield results; jobs that were begun and have none yet are in `pending`."""
        with ProcessPoolExecutor(self.n, multiprocessing.get_context("spawn")) as executor:
            futures: deque[Future[Result]] = deque(executor.submit(function, job) for job in pending)
            for job in todo:
                pending.append(job)
                futures.append(executor.submit(function, job))
                while futures and (len(futures) >= self.n * _AHEAD or futures[0].done()):
                    result = futures.popleft().result()
                    pending.popleft()
                    yield result
            while futures:
                result = futures.popleft().result()
                pending.popleft()
                yield result

    def _alone(self, function: Callable[[Job], Result], job: Job, lost: Callable[[Job, str], Result]) -> Result:
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
                return executor.submit(function, job).result()
        except BrokenProcessPool:
            return lost(job, "its process died twice, perhaps for want of memory")


class Dask:
    """Jobs over the workers of a dask cluster, which see the same files.

    Parameters
    ----------
    client
        A connected `distributed.Client`.

    Raises
    ------
    WsiscoreError
        If no worker comes within a minute, or one has another version of wsiscore.
    """

    local = False

    def __init__(self, client: Any) -> None:
        self._client = client
        try:
            client.wait_for_workers(1, timeout=_POLL_S)
        except TimeoutError:
            _log.warning("the cluster has no worker yet; waiting for one (start it with `dask worker`)")
            try:
                client.wait_for_workers(1, timeout=_PATIENCE_S)
            except TimeoutError as error:
                raise WsiscoreError(
                    f"no worker came to {client.scheduler.address} in {_PATIENCE_S:g} s; start one with `dask worker`"
                ) from error
        for worker, version in client.run(_version).items():
            if version != __version__:
                raise WsiscoreError(
                    f"the worker {worker} has wsiscore {version}, wanted {__version__}; install the same everywhere"
                )

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, str], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, as `Engine.map`; dask itself tries one again whose worker died."""
        begun = [(job, self._client.submit(_checked, function, job, __version__, pure=False)) for job in jobs]
        for job, task in begun:
            try:
                result = self._result(task)
            except _LostError as error:
                yield lost(job, str(error))
            else:
                task.release()
                yield result

    def _result(self, task: Any) -> Any:
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker

        without_workers = 0.0
        while True:
            try:
                return task.result(timeout=_POLL_S)
            except KilledWorker as error:
                raise _LostError("each worker that tried it died, perhaps for want of memory") from error
            except WsiscoreError as error:
                raise _LostError(str(error)) from error
            except (CancelledError, CommClosedError) as error:
                raise _LostError("the cluster's scheduler went away") from error
            except TimeoutError:
                if self._client.status != "running":
                    raise _LostError("the cluster's scheduler went away") from None
                without_workers = 0.0 if self._client.nthreads() else without_workers + _POLL_S
                if without_workers > _PATIENCE_S:
                    raise _LostError("the cluster has no worker left") from None


class _LostError(Exception):
    """A job has no result; the text says why."""


def _version() -> str:
    return __version__


def _checked(function: Callable[[Job], Result], job: Job, version: str) -> Result:
    """Run a job on a worker; WsiscoreError if the worker, which may have come later, has another version."""
    if version != __version__:
        raise WsiscoreError(f"a worker has wsiscore {__version__}, wanted {version}; install the same everywhere")
    return function(job)


@contextmanager
def open_engine(cluster: str | None) -> Iterator[Engine]:
    """Give the engine that ``--cluster`` names.

    Parameters
    ----------
    cluster
        Address of a dask scheduler, such as ``tcp://node1:8786``; ``local:N`` for N processes of this machine; None for
        one job after the other in this process.

    Raises
    ------
    WsiscoreError
        If there is no scheduler at that address, or no worker of this version.
    """
    if cluster is None:
        yield Serial()
        return
    kind, _, number = cluster.partition(":")
    if kind == "local":
        if not number.isdecimal() or int(number) < 1:
            raise WsiscoreError(f"--cluster {cluster}: wanted local:N with a number of processes, such as local:4")
        yield Processes(int(number))
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise WsiscoreError(f"--cluster {cluster} needs dask; install wsiscore[cluster]") from error
    try:
        client = Client(cluster, timeout=_ANSWERS_WITHIN)
    except (OSError, ValueError) as error:
        raise WsiscoreError(
            f"no dask scheduler answers at {cluster} ({error}); start one with `dask scheduler`"
        ) from error
    with client:
        yield Dask(client)
