"""Measure candidates in a pool of processes; each opens the models once, memory-mapped.

Workers are started afresh (spawn), because threads and accelerators do not survive a fork. When a
worker dies no finished result is lost: a new pool is started, and what was not finished is measured
again. Workers die with this process.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from agent_forge.core.errors import PhaseError
from agent_forge.core.lifetime import die_with_parent
from agent_forge.search.evaluator import Measure, SearchJob, SearchTask, on_accelerator, shares
from agent_forge.search.settings import EvolveSettings

POLL_SECONDS = 0.5
MOST_RESTARTS = 3  # restarts of a pool whose workers died, without one result in between

_measure: Measure | None = None  # what this process measures with, where it is a worker


def open(task: SearchTask, settings: EvolveSettings, check_stop: Callable[[], None]) -> "Pool":
    """Return the evaluator: one worker per core, or per accelerator where the task needs one."""
    available = len(os.sched_getaffinity(0))
    if on_accelerator(task):
        import torch

        available = torch.accelerator.device_count() or available
    workers, candidates = shares(settings.workers, available, settings.batch_candidates)
    return Pool(task, workers, candidates, check_stop)


class Pool:
    """`width` worker processes."""

    def __init__(
        self, task: SearchTask, workers: int, candidates: int, check_stop: Callable[[], None]
    ) -> None:
        self.width = workers
        self._task, self._candidates, self._check_stop = task, candidates, check_stop
        self._executor: ProcessPoolExecutor | None = None

    def measure(
        self, jobs: Sequence[SearchJob[Any]]
    ) -> Iterator[tuple[SearchJob[Any], list[list[float]]]]:
        """Yield jobs as they finish. Raises PhaseError when workers keep dying."""
        left, restarts = list(jobs), 0
        while left:
            try:
                for job, values in self._round(left):
                    restarts = 0
                    left.remove(job)
                    yield job, values
            except BrokenProcessPool:
                self.close()
                restarts += 1
                if restarts > MOST_RESTARTS:
                    raise PhaseError(
                        f"workers of the pool died {restarts} times (often for want of memory); "
                        "lower search.workers"
                    ) from None

    def close(self) -> None:
        """End the workers; each finishes its current job."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None

    def _round(
        self, jobs: Sequence[SearchJob[Any]]
    ) -> Iterator[tuple[SearchJob[Any], list[list[float]]]]:
        executor = self._running()
        pending: dict[Future[list[list[float]]], SearchJob[Any]] = {
            executor.submit(_run, job): job for job in jobs
        }
        try:
            while pending:
                self._check_stop()
                for future in wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        finally:
            for future in pending:
                future.cancel()

    def _running(self) -> ProcessPoolExecutor:
        if self._executor is None:
            context = get_context("spawn")
            numbers = context.SimpleQueue()
            for number in range(self.width):
                numbers.put(number)
            self._executor = ProcessPoolExecutor(
                self.width, context, _start, (self._task, numbers, self._candidates, os.getpid())
            )
        return self._executor


def _start(task: SearchTask, numbers: Any, candidates: int, parent: int) -> None:
    global _measure
    die_with_parent(parent)
    _measure = task.open(numbers.get(), candidates)


def _run(job: SearchJob[Any]) -> list[list[float]]:
    assert _measure is not None, "the pool starts every worker before it gets a job"
    return _measure(job.genome, job.key, job.spans)
