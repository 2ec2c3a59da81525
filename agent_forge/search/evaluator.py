"""Where candidates are measured: one interface over this process, a process pool and Ray.

What a candidate scores is a pure function of its genome and the items, so every backend and any
number of workers gives the same numbers; only the order in which they arrive differs. A backend is
one file in `evaluators/` with `open`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from agent_forge.core import registry
from agent_forge.search.population import G
from agent_forge.search.settings import EvolveSettings

PACKAGE = "agent_forge.search.evaluators"
Spans = tuple[tuple[int, int], ...]
# (genome, its key, item ranges) -> for each range, one number per item
Measure = Callable[[Any, str, Spans], list[list[float]]]


@dataclass(frozen=True, slots=True)
class SearchJob(Generic[G]):
    """Measure one candidate on ranges [start, stop) of the items."""

    genome: G
    key: str
    spans: Spans


class SearchTask(Protocol):
    """What a worker has to do. It must be picklable for workers in other processes.

    A task that computes on an accelerator names it in an attribute `device` (as in runtime.device).
    """

    def open(self, worker: int, candidates: int) -> Measure:
        """Return the function that measures; called once per worker.

        candidates: how many merged candidates it may keep.
        """
        ...


class Evaluator(Protocol[G]):
    """Measures jobs; `width` is how many it works on at once."""

    width: int

    def measure(
        self, jobs: Sequence[SearchJob[G]]
    ) -> Iterator[tuple[SearchJob[G], list[list[float]]]]:
        """Yield each job with its numbers, one list per span, as soon as they are ready."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


def open_evaluator(
    task: SearchTask, settings: EvolveSettings, check_stop: Callable[[], None]
) -> Evaluator[Any]:
    """Return the backend that `settings.backend` names.

    `check_stop` is called often, and may raise.

    Raises ConfigError for an unknown backend, or one whose package is not installed.
    """
    evaluator: Evaluator[Any] = registry.load(PACKAGE, settings.backend, "search backend").open(
        task, settings, check_stop
    )
    return evaluator


def on_accelerator(task: SearchTask) -> bool:
    """Return whether the workers of a task each need an accelerator."""
    return str(getattr(task, "device", "cpu")) != "cpu"


def shares(workers_set: int, available: int, batch_candidates: int) -> tuple[int, int]:
    """Return (workers, candidates that each may keep), at most `batch_candidates` of them together.

    workers_set: search.workers; 0 takes as many as are available.
    """
    workers = max(1, min(workers_set or available, batch_candidates))
    return workers, batch_candidates // workers
