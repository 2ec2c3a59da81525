"""Measure candidates one after another in this process."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agent_forge.search.evaluator import SearchJob, SearchTask
from agent_forge.search.settings import EvolveSettings


def open(task: SearchTask, settings: EvolveSettings, check_stop: Callable[[], None]) -> "InProcess":
    """Return the evaluator; models are opened at once."""
    return InProcess(task, settings.batch_candidates, check_stop)


class InProcess:
    """The simplest backend: this process is the only worker."""

    width = 1

    def __init__(self, task: SearchTask, candidates: int, check_stop: Callable[[], None]) -> None:
        self._measure = task.open(0, candidates)
        self._check_stop = check_stop

    def measure(
        self, jobs: Sequence[SearchJob[Any]]
    ) -> Iterator[tuple[SearchJob[Any], list[list[float]]]]:
        """Yield each job with its numbers, in order."""
        for job in jobs:
            self._check_stop()
            yield job, self._measure(job.genome, job.key, job.spans)

    def close(self) -> None:
        """Do nothing: there is no worker to end."""
