"""Entropy coding in processes beside this one, so that a device goes on while the host codes.

The range coder holds Python's lock, so threads alone would wait for each other. `Pool.map` runs a
function for several items, each in a thread: one thread at a time works in this process, and hands
its turn on while `call` waits for a worker. Results are the same as in a plain loop, bit for bit,
for a worker runs the same function on the same arrays. Reads and writes no files, and does not
import torch.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from agent_forge.core.errors import Interrupted, PhaseError

MOST_IN_FLIGHT = 4  # items whose tensors are held at once
# Arrays with fewer entries are coded in this process: starting workers would take longer than they
# save (a core codes about 16 M entries per second).
FEWEST_ENTRIES = 1 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Turn(threading.local):
    """What belongs to one thread: the workers that it may use, and the lock it holds while it
    works.
    """

    workers: ProcessPoolExecutor | None = None
    lock: threading.Lock


_turn = _Turn()


class Pool:
    """At most `workers` processes, started once an array is large enough; 1 starts none."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._executor: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """End the workers; each finishes what it is at."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], entries: int
    ) -> list[Result]:
        """Return function(item) of every item, in order.

            entries: the size of the array each one codes.

        Raises what the function raises, also in a worker, and PhaseError when a worker dies.
        """
        if self.workers < 2 or len(items) < 2 or entries < FEWEST_ENTRIES:
            return [function(item) for item in items]
        executor, lock = self._running(), threading.Lock()

        def one(item: Item) -> Result:
            with lock:
                _turn.workers, _turn.lock = executor, lock
                return function(item)

        width = min(MOST_IN_FLIGHT, self.workers, len(items))
        threads = ThreadPoolExecutor(width, thread_name_prefix="code")
        try:
            return list(threads.map(one, items))
        except BrokenProcessPool:
            raise PhaseError(
                "a process that codes for compress died (often for want of memory); run the same "
                "command again, with runtime.threads=1 to code in one process"
            ) from None
        finally:
            threads.shutdown(cancel_futures=True)

    def _running(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # Threads and accelerators do not survive a fork.
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(self.workers, context, _start)
        return self._executor


def call(function: Callable[..., Result], *arguments: Any, entries: int) -> Result:
    """Return function(*arguments), from a worker where this thread has one and it pays.

    function: must be of a module that does not import torch. entries: the size of the array that it
    codes.
    """
    if _turn.workers is None or entries < FEWEST_ENTRIES:
        return function(*arguments)
    with aside():
        return _turn.workers.submit(function, *arguments).result()


@contextmanager
def aside() -> Iterator[None]:
    """Let the pool's other threads work meanwhile: during a wait, or work of the CPU alone."""
    if _turn.workers is None:
        yield
        return
    _turn.lock.release()
    try:
        yield
    finally:
        _turn.lock.acquire()


def _start() -> None:
    """Begin a worker: it leaves signals to the parent, which ends in order, and ends with it.

    Not by die_with_parent: Linux takes the thread that started a process for its parent, and a
    thread of `map` does not live as long as the pool.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker is started by multiprocessing"
    parent.join()
    os._exit(Interrupted.exit_code)
