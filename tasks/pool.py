"""A supervised pool: one item a worker at a time, so that a crash costs that item and no other.

`ProcessPoolExecutor` loses every pending future when one native decoder
segfaults; here the parent knows which item each worker holds.
"""

import logging
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from neurovfm_core.errors import Reason

logger = logging.getLogger(__name__)

RECYCLE_AFTER = 2000
"""Items after which a worker is replaced, so that a native leak cannot grow all night."""


@dataclass(frozen=True)
class Lost:
    """What the parent says of an item whose worker died or overran."""

    reason: Reason
    detail: str


@dataclass
class _Worker:
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    index: int | None = None
    started: float = 0.0
    done: int = 0


class Pool:
    """Run a function over items in worker processes; use as a context manager.

    Parameters
    ----------
    target
        Importable function of one picklable item; it must not raise.
    workers
        Number of processes; they start with the first item.
    timeout_s, memory_gb
        Limits of one item, and of one worker's address space.
    """

    def __init__(self, target: Callable[[Any], Any], *, workers: int, timeout_s: float, memory_gb: float) -> None:
        self._target, self._size = target, workers
        self._timeout_s, self._memory_gb = timeout_s, memory_gb
        # Forking a process that has threads (the lease's heartbeat, Arrow) can deadlock the child.
        self._context = multiprocessing.get_context("forkserver")
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(timeout=2)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()

    def run(
        self, items: Sequence[Any], *, should_stop: Callable[[], bool] = lambda: False, grace_s: float = 20.0
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result or `Lost`) as items finish, in any order.

        When `should_stop` turns true no further item is handed out; running
        ones get `grace_s` to finish, then are dropped without a result.
        """
        waiting = list(range(len(items) - 1, -1, -1))
        deadline: float | None = None
        while True:
            if deadline is None and should_stop():
                waiting.clear()
                deadline = time.monotonic() + grace_s
            self._feed(waiting, items)
            busy = [worker for worker in self._workers if worker.index is not None]
            if not busy:
                return
            if deadline is not None and time.monotonic() > deadline:
                for worker in busy:
                    self._discard(worker)
                return
            yield from self._collect(busy)

    def _feed(self, waiting: list[int], items: Sequence[Any]) -> None:
        while waiting and len(self._workers) < min(self._size, len(waiting) + self._num_busy()):
            self._workers.append(self._start())
        for position, worker in enumerate(self._workers):
            if worker.index is None and waiting:
                if worker.done >= RECYCLE_AFTER or not worker.process.is_alive():
                    worker.pipe.close()
                    worker = self._workers[position] = self._start()
                worker.index, worker.started = waiting.pop(), time.monotonic()
                worker.pipe.send(items[worker.index])

    def _num_busy(self) -> int:
        return sum(worker.index is not None for worker in self._workers)

    def _collect(self, busy: list[_Worker]) -> Iterator[tuple[int, Any]]:
        ready = set(wait([worker.pipe for worker in busy], timeout=0.2))
        for worker in busy:
            index = worker.index
            assert index is not None
            if worker.pipe in ready:
                try:
                    result = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    result = self._died(worker)
                else:
                    worker.index, worker.done = None, worker.done + 1
                yield index, result
            elif time.monotonic() - worker.started > self._timeout_s:
                self._discard(worker)
                yield index, Lost(Reason.TIMEOUT, f"took longer than {self._timeout_s:g} s")

    def _died(self, worker: _Worker) -> Lost:
        worker.process.join(timeout=5)
        code = worker.process.exitcode
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        self._discard(worker)
        logger.warning("worker died while on an item, which is quarantined cause=%s", name)
        return Lost(Reason.CRASH, f"the worker process ended with {name}")

    def _discard(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.pipe.close()
        worker.process.kill()
        worker.process.join()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._target, self._memory_gb, os.getpid()), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _work(pipe: Connection, target: Callable[[Any], Any], memory_gb: float, parent: int) -> None:
    """Serve items until the parent closes the pipe or is gone."""
    from threadpoolctl import threadpool_limits

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    limit = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with threadpool_limits(1):
        while True:
            try:
                item = pipe.recv()
            except (EOFError, OSError):
                return
            try:
                pipe.send(target(item))
            except BrokenPipeError:
                return
