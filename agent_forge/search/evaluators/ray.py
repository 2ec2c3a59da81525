"""Measure candidates on Ray actors, one per accelerator or core, on one machine or many.

A job whose actor or node dies goes to another actor, and a new actor is started. On several hosts
the checkpoints must be readable at the same paths on each (a shared file system). Needs the extra
`dist`.
"""

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.search.evaluator import SearchJob, SearchTask, on_accelerator, shares
from agent_forge.search.settings import EvolveSettings

POLL_SECONDS = 0.5
OBJECT_STORE_BYTES = 200_000_000  # genomes and scores are small; models never travel
MOST_DEATHS = 8  # deaths of actors, without one result in between


def open(task: SearchTask, settings: EvolveSettings, check_stop: Callable[[], None]) -> "RayActors":
    """Start or join Ray and return the evaluator.

    Raises ConfigError without the package or the cluster.
    """
    ray = _ray()
    started = not ray.is_initialized()
    if started:
        _connect(ray, settings)
    resources = ray.cluster_resources()
    on_gpu = on_accelerator(task) and resources.get("GPU", 0) >= 1
    available = int(resources.get("GPU" if on_gpu else "CPU", 1))
    workers, candidates = shares(settings.workers, available, settings.batch_candidates)
    return RayActors(task, workers, candidates, check_stop, on_gpu=on_gpu, owns_ray=started)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "search.backend=ray needs Ray; install the extra: pip install 'agent-forge[dist]'"
        ) from None
    return ray


def _connect(ray: Any, settings: EvolveSettings) -> None:
    """Start or join Ray, without its signal handlers: a stop is noticed by the phase, which saves
    first.
    """
    options: dict[str, Any] = {"address": settings.ray_address}
    if not settings.ray_address:
        options = {
            "address": "local", "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES, "num_cpus": settings.workers or None,
        }  # fmt: skip
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"search.ray_address={settings.ray_address}: {' '.join(str(error).split())}"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Worker:
    """What runs in an actor."""

    def __init__(self, task: SearchTask, number: int, candidates: int) -> None:
        self._measure = task.open(number, candidates)

    def ready(self) -> bool:
        """Return True, once the models are open: actors are built before they answer."""
        return True

    def run(self, job: SearchJob[Any]) -> list[list[float]]:
        """Measure one job."""
        return self._measure(job.genome, job.key, job.spans)


class RayActors:
    """`width` actors.

    Only an actor that is ready gets a job, so an actor for which no node has room never holds one.
    """

    def __init__(
        self,
        task: SearchTask,
        workers: int,
        candidates: int,
        check_stop: Callable[[], None],
        *,
        on_gpu: bool,
        owns_ray: bool,
    ) -> None:
        self.width = workers
        self._ray, self._owns_ray = _ray(), owns_ray
        self._task = self._ray.put(task)
        self._candidates, self._check_stop = candidates, check_stop
        need = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
        self._actor = self._ray.remote(**need, max_restarts=0)(Worker)
        self._started, self._deaths = 0, 0
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # reference -> actor
        for _ in range(workers):
            self._start()

    def measure(
        self, jobs: Sequence[SearchJob[Any]]
    ) -> Iterator[tuple[SearchJob[Any], list[list[float]]]]:
        """Yield jobs as they finish. Raises PhaseError when actors keep dying."""
        left = list(jobs)
        busy: dict[Any, tuple[Any, SearchJob[Any]]] = {}
        while left or busy:
            self._check_stop()
            while left and self._idle:
                actor, job = self._idle.pop(0), left.pop(0)
                busy[actor.run.remote(job)] = (actor, job)
            for reference in self._ray.wait(
                [*busy, *self._starting], num_returns=1, timeout=POLL_SECONDS
            )[0]:
                waiting = busy.pop(reference, None)
                actor = self._starting.pop(reference) if waiting is None else waiting[0]
                try:
                    values = self._ray.get(reference)
                except self._ray.exceptions.RayActorError as error:
                    left[:0] = [waiting[1]] if waiting is not None else []
                    self._replace(error)
                    continue
                self._idle.append(actor)
                if waiting is not None:
                    self._deaths = 0
                    yield waiting[1], values

    def close(self) -> None:
        """End the actors, and Ray where this search started it."""
        for actor in [*self._idle, *self._starting.values()]:
            self._ray.kill(actor)
        self._idle, self._starting = [], {}
        if self._owns_ray:
            self._ray.shutdown()

    def _start(self) -> None:
        actor = self._actor.remote(self._task, self._started % self.width, self._candidates)
        self._starting[actor.ready.remote()] = actor
        self._started += 1

    def _replace(self, error: Exception) -> None:
        self._deaths += 1
        if self._deaths > MOST_DEATHS:
            raise PhaseError(
                f"{self._deaths} Ray actors died one after another "
                f"({' '.join(str(error).split())[:200]})"
            )
        self._start()
