"""How the slides of a run are worked on: one after the other, by local processes, or over a dask cluster.

Each executor gives the same results in the same order. A job whose process dies is tried again, and then is one lost
job: `lost` makes its result, and the others go on. If a dask scheduler or all workers go away for good, so are all jobs
that have no result yet.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from wsiscore import __version__
from wsiscore.errors import WsiscoreError
from wsiscore.messages import show_messages, shown_level
from wsiscore.threads import set_threads, threads

__all__ = ["Dask", "Executor", "Processes", "Serial", "open_executor"]

_ANSWERS_WITHIN = "10s"  # a scheduler that is there
_POLL_S = 2.0
_PATIENCE_S = 60.0  # without any worker
_NO_SCHEDULER = "the cluster's scheduler went away; start it and give the same command again"
_AHEAD = 2  # jobs a process has waiting, so that an endless pipe is not read to its end first

_log = logging.getLogger("wsiscore")

Job = TypeVar("Job")
Result = TypeVar("Result")


class Executor(Protocol):
    """What runs jobs."""

    local: bool
    """Whether jobs run in this process, and may show progress on its terminal."""

    @property
    def workers(self) -> int:
        """How many jobs run at a time."""

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, Exception], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, in the order given, each as soon as it and those before it are done.

        Parameters
        ----------
        function, jobs
            Both can be pickled.
        lost
            Makes the result of a job that has none, from the job and the reason: a WsiscoreError if the process died
            or the cluster went away, else what was raised.
        """


class Serial:
    """One job after the other, in this process; jobs are taken one by one, so that a pipe may still be filling."""

    local = True
    workers = 1

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, Exception], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, as `Executor.map`; none is lost without this process."""
        del lost
        return map(function, jobs)


class Processes:
    """Jobs side by side, in processes of this machine, which last from one `map` to the next.

    Parameters
    ----------
    workers
        Number of processes.
    threads
        That each may use.
    """

    local = False

    def __init__(self, workers: int, threads: int = 1) -> None:
        self.workers, self.threads = workers, threads
        self._processes: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the processes; those that are at work end with their job."""
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)
        self._processes = None

    def _start(self, n: int) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(n, context, _begin, (self.threads, shown_level()))

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, Exception], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, as `Executor.map`."""
        todo, pending = iter(jobs), deque[Job]()
        while True:
            try:
                yield from self._until_broken(function, todo, pending)
                return
            except (
                BrokenProcessPool
            ):  # which job's process it was is not known: the first is tried alone, the others again
                self.close()
                yield self._alone(function, pending.popleft(), lost)

    def _until_broken(
        self, function: Callable[[Job], Result], todo: Iterator[Job], pending: deque[Job]
    ) -> Iterator[Result]:
        """Yield results; jobs that were begun and have none yet are in `pending`."""
        processes = self._processes = self._processes or self._start(self.workers)
        futures: deque[Future[Result]] = deque(processes.submit(function, job) for job in pending)
        for job in todo:
            pending.append(job)
            futures.append(processes.submit(function, job))
            while futures and (len(futures) >= self.workers * _AHEAD or futures[0].done()):
                result = futures.popleft().result()
                pending.popleft()
                yield result
        while futures:
            result = futures.popleft().result()
            pending.popleft()
            yield result

    def _alone(self, function: Callable[[Job], Result], job: Job, lost: Callable[[Job, Exception], Result]) -> Result:
        for _ in range(2):  # the process that died before may have been another job's
            try:
                with self._start(1) as process:
                    return process.submit(function, job).result()
            except BrokenProcessPool:
                continue
        return lost(job, WsiscoreError("its process died twice, perhaps for want of memory"))


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
        self._gone: WsiscoreError | None = None  # why no job can have a result any more
        address = client.scheduler.address
        try:
            self._wait_for_a_worker(address)
            versions = client.run(_version, on_error="return")
        except (OSError, CancelledError) as error:
            raise WsiscoreError(f"the dask scheduler at {address} went away ({error}); start it again") from error
        for worker, version in versions.items():
            if version != __version__:
                found = f"has no wsiscore ({version})" if isinstance(version, Exception) else f"has wsiscore {version}"
                raise WsiscoreError(f"the worker {worker} {found}, wanted {__version__}; install the same everywhere")

    @property
    def workers(self) -> int:
        """How many jobs run at a time: the threads of all workers that are there."""
        with suppress(OSError, CancelledError):
            return max(1, int(sum(self._client.nthreads().values())))
        return 1

    def _wait_for_a_worker(self, address: str) -> None:
        try:
            self._client.wait_for_workers(1, timeout=_POLL_S)
        except TimeoutError:
            _log.warning("the cluster has no worker yet; waiting for one (start it with `dask worker`)")
            try:
                self._client.wait_for_workers(1, timeout=_PATIENCE_S)
            except TimeoutError as error:
                raise WsiscoreError(
                    f"no worker came to {address} in {_PATIENCE_S:g} s; start one with `dask worker {address}`"
                ) from error

    def map(
        self, function: Callable[[Job], Result], jobs: Iterable[Job], lost: Callable[[Job, Exception], Result]
    ) -> Iterator[Result]:
        """Yield `function` of each job, as `Executor.map`; dask itself tries one again whose worker died."""
        from distributed.scheduler import KilledWorker

        begun = deque((job, *self._submit(function, job)) for job in jobs)
        while begun:
            job, task, future = begun.popleft()
            others = [(each, its) for _, each, its in begun]
            try:
                try:
                    result = self._result(future, [task, *(each for each, _ in others)])
                except (
                    KilledWorker,
                    CancelledError,
                ):  # dask blames all jobs of a worker that dies: try it again, alone
                    self._settle(others)
                    task, future = self._submit(function, job)
                    result = self._result(future, [task])
            except (KilledWorker, CancelledError):
                yield lost(job, WsiscoreError("each worker that tried it died, perhaps for want of memory"))
            except Exception as error:  # noqa: BLE001 - what a worker raises is the job's, and must not end the others
                yield lost(job, error)
            else:
                yield result

    def _settle(self, begun: Sequence[tuple[Any, Future[Any]]]) -> None:
        """Wait until tasks have ended, however."""
        for number, (_, future) in enumerate(begun):
            with suppress(Exception):  # at its own turn
                self._result(future, [task for task, _ in begun[number:]])

    def _submit(self, function: Callable[[Job], Result], job: Job) -> tuple[Any, Future[Result]]:
        """Return the task of a job, and a future with its result here, which no lost worker takes away again."""
        task, future = self._client.submit(_checked, function, job, __version__, pure=False), Future[Result]()
        task.add_done_callback(partial(_hand_over, future))
        return task, future

    def _result(self, future: Future[Result], tasks: Sequence[Any]) -> Result:
        """Return the result of the first of `tasks`; WsiscoreError if it can have none."""
        without_workers = 0.0
        while self._gone is None and not wait([future], timeout=_POLL_S).done:
            workers = self._workers()
            if not workers and not without_workers:
                _log.warning("the cluster has no worker left; waiting for one")
            without_workers = 0.0 if workers else without_workers + _POLL_S
            if without_workers > _PATIENCE_S:
                self._gone = WsiscoreError(f"the cluster had no worker for {_PATIENCE_S:g} s; start one, and try again")
                with suppress(OSError, CancelledError):  # so that a worker that comes later does not begin them
                    self._client.cancel(list(tasks))
        if future.done() and isinstance(future.exception(), CancelledError) and self._gone is None:
            self._workers()  # it is cancelled with its scheduler, or because the worker that held its result died
        if self._gone and (not future.done() or isinstance(future.exception(), CancelledError)):
            raise self._gone
        return future.result()

    def _workers(self) -> int:
        """Return the number of workers; without a scheduler, note that it is gone."""
        with suppress(OSError, CancelledError):
            if self._client.status == "running":
                return len(self._client.nthreads())
        self._gone = WsiscoreError(_NO_SCHEDULER)
        return 0


def _begin(n_threads: int, level: int) -> None:
    """Prepare a process: its threads, and messages as in the process that began it."""
    set_threads(n_threads)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    show_messages(level)


def _hand_over(future: Future[Any], task: Any) -> None:
    """Give what a dask task has ended with to a future."""
    try:
        future.set_result(task.result())
    except Exception as error:  # noqa: BLE001 - as it was raised on the worker; CancelledError without a scheduler
        future.set_exception(error)


def _end_with_the_parent() -> None:
    """End this process as soon as the one that started it has ended, however: what it has not done is done again."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _version() -> str:
    return __version__


def _checked(function: Callable[[Job], Result], job: Job, version: str) -> Result:
    """Run a job on a worker; WsiscoreError if the worker, which may have come later, has another version."""
    if version != __version__:
        raise WsiscoreError(f"a worker has wsiscore {__version__}, wanted {version}; install the same everywhere")
    return function(job)


@contextmanager
def open_executor(cluster: str | None, own_threads: int | None = None) -> Iterator[Executor]:
    """Give the executor that ``--cluster`` names.

    Parameters
    ----------
    cluster
        Address of a dask scheduler, such as ``tcp://node1:8786``; ``local:N`` for N processes of this machine; None for
        one job after the other in this process.
    own_threads
        Threads of each process of ``local:N``; by default an equal part of those this one may use.

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
        processes = Processes(int(number), own_threads or max(1, threads() // int(number)))
        with closing(processes):
            yield processes
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
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is in the rows, in one line each
    with client:
        yield Dask(client)
