"""How the slides of a run are worked on: one after the other, by local processes, or over a dask cluster."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from wsiscore.errors import WsiscoreError

__all__ = ["Dask", "Engine", "Processes", "Serial", "open_engine"]

_ANSWERS_WITHIN = "10s"  # a scheduler that is there
_AHEAD = 2  # jobs a worker has waiting, so that an endless pipe is not read to its end first

Job = TypeVar("Job")
Result = TypeVar("Result")


class Engine(Protocol):
    """What runs jobs."""

    local: bool
    """Whether jobs run in this process, and may show progress on its terminal."""

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield `function` of each job, in the order given, each as soon as it and those before it are done.

        Jobs are taken one by one, so that a pipe may still be filling; function and jobs can be pickled.
        """


class Serial:
    """One job after the other, in this process."""

    local = True

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield `function` of each job, as `Engine.map`."""
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

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield `function` of each job, as `Engine.map`."""
        waiting: deque[Future[Result]] = deque()
        with ProcessPoolExecutor(self.n, multiprocessing.get_context("spawn")) as pool:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                while waiting and (len(waiting) >= self.n * _AHEAD or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


class Dask:
    """Jobs over the workers of a dask cluster, which see the same files.

    Parameters
    ----------
    client
        A connected `distributed.Client`.
    """

    local = False

    def __init__(self, client: Any) -> None:
        self._client = client

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield `function` of each job, as `Engine.map`."""
        tasks = [self._client.submit(function, job, pure=False) for job in jobs]
        for task in tasks:
            yield task.result()


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
        If there is no scheduler at that address.
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
    from distributed import Client

    try:
        client = Client(cluster, timeout=_ANSWERS_WITHIN)
    except (OSError, ValueError) as error:
        raise WsiscoreError(
            f"no dask scheduler answers at {cluster} ({error}); start one with `dask scheduler`"
        ) from error
    with client:
        yield Dask(client)
