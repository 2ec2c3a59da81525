"""Backends: the same scores wherever candidates are measured, whatever dies on the way, and never
too many alive.
"""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError
from agent_forge.search.evaluator import SearchJob, open_evaluator, shares
from agent_forge.search.evaluators import pool, ray
from agent_forge.search.evolve import evolve
from agent_forge.search.journal import Journal
from tests.search.planted import Bench, Planted, Vectors, quadratic, settings

SPACE = Vectors()


def best(
    chosen, journal: Path | None = None, task: Planted | None = None
) -> tuple[str, float, list[str]]:
    with Bench(task or Planted(quadratic, noise=0.1), chosen, SPACE, journal=journal) as scorer:
        evolution = evolve(SPACE, scorer, (), chosen, 3)
    return evolution.best.key, evolution.best.fitness, [m.key for m in evolution.members]


@pytest.mark.parametrize("method", ["ga", "cmaes", "nsga2"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_pool_of_any_size_finds_what_one_process_finds(method: str, workers: int) -> None:
    chosen = settings(method=method, generations=3)
    pooled = settings(method=method, generations=3, backend="pool", workers=workers)
    assert best(pooled) == best(chosen)


def test_workers_share_the_jobs_and_are_never_more_than_the_candidates_that_may_live(
    tmp_path: Path,
) -> None:
    for workers, candidates, expected in ((2, 4, 2), (4, 2, 2), (3, 1, 1)):
        log = tmp_path / f"{workers}-{candidates}"
        task = Planted(quadratic, log=str(log), seconds=0.05)
        chosen = settings(
            backend="pool", workers=workers, batch_candidates=candidates, generations=1
        )
        best(chosen, task=task)
        used = Counter(line.split()[0] for line in log.read_text().splitlines())
        assert len(used) == expected
        assert str(os.getpid()) not in used
    assert shares(0, 16, 8) == (8, 1)
    assert shares(3, 16, 8) == (3, 2)
    assert shares(0, 2, 9) == (2, 4)


class Dying(Planted):
    """A task whose worker is killed at the first job of each file name in `log` that does not exist
    yet.
    """

    def open(self, worker: int, candidates: int):
        measure = super().open(worker, candidates)

        def once(genome, key, spans):
            mark = Path(f"{self.log}.{'always' if not self.seconds else 'died'}")
            if not self.seconds or not mark.exists():
                with mark.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
            return measure(genome, key, spans)

        return once


def test_a_worker_that_is_killed_costs_no_result(tmp_path: Path) -> None:
    chosen = settings(backend="pool", generations=2)
    task = Dying(quadratic, noise=0.1, log=str(tmp_path / "log"), seconds=0.001)
    assert best(chosen, task=task) == best(settings(generations=2))
    assert (tmp_path / "log.died").exists()


def test_workers_that_always_die_end_the_search_with_advice(tmp_path: Path) -> None:
    task = Dying(quadratic, log=str(tmp_path / "log"))
    with pytest.raises(PhaseError, match=r"died 4 times .* lower search\.workers"):
        best(settings(backend="pool", workers=1), task=task)
    assert len((tmp_path / "log.always").read_text()) == pool.MOST_RESTARTS + 1


CHILD = """
import sys
from pathlib import Path
from agent_forge.search.evolve import evolve
from tests.search.planted import Bench, Planted, Vectors, quadratic, settings

if __name__ == "__main__":
    method, backend, journal = sys.argv[1:]
    chosen = settings(method=method, backend=backend, generations=6)
    task = Planted(quadratic, noise=0.1, seconds=0.02)
    with Bench(task, chosen, Vectors(), journal=Path(journal)) as scorer:
        evolve(Vectors(), scorer, (), chosen, 3)
"""


@pytest.mark.parametrize("backend", ["in_process", "pool"])
@pytest.mark.parametrize("method", ["ga", "cmaes", "nsga2"])
def test_a_search_killed_in_the_middle_of_a_generation_ends_in_the_same_genome(
    method: str, backend: str, tmp_path: Path
) -> None:
    script, journal = tmp_path / "child.py", tmp_path / "journal.jsonl"
    script.write_text(CHILD)
    child = subprocess.Popen(
        [sys.executable, str(script), method, backend, str(journal)],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 35)
    workers = children(child.pid)
    child.kill()
    child.wait()
    measured = journal.read_bytes().count(b"\n")
    chosen = settings(method=method, generations=6)
    assert best(chosen, journal) == best(chosen)
    assert journal.read_bytes().count(b"\n") > measured
    assert len(workers) >= (2 if backend == "pool" else 0)
    wait_for(lambda: not any(running(worker) for worker in workers))  # No orphan goes on.


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class PretendRay:
    """Ray as far as the search uses it, in this process: actors run at once, and those in `dying`
    die at a job.
    """

    class exceptions:
        class RayActorError(Exception):
            """An actor died."""

    def __init__(self, dying: set[int]) -> None:
        self.dying, self.needs, self.actors = dying, [], 0

    def put(self, value):
        return value

    def remote(self, **needs):
        self.needs.append(needs)
        return lambda kind: type(
            "Actor", (), {"remote": lambda *arguments: self.start(kind(*arguments))}
        )

    def start(self, worker):
        number, self.actors = self.actors, self.actors + 1

        def call(work):
            return type("Method", (), {"remote": lambda *a: (number, lambda: work(*a))})

        def run(job):
            if number in self.dying:
                raise self.exceptions.RayActorError(f"actor {number} died")
            return worker.run(job)

        return type("Handle", (), {"ready": call(worker.ready), "run": call(run)})

    def wait(self, references, **_):
        return references[:1], references[1:]

    def get(self, reference):
        return reference[1]()


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_job_whose_ray_actor_dies_is_done_by_another(
    monkeypatch: pytest.MonkeyPatch, on_gpu: bool
) -> None:
    pretend = PretendRay(dying={0, 1})
    monkeypatch.setattr(ray, "_ray", lambda: pretend)
    task = Planted(quadratic)
    actors = ray.RayActors(task, 2, 1, lambda: None, on_gpu=on_gpu, owns_ray=False)
    jobs = [SearchJob(("a", (x,) * 6), f"key {x}", ((0, 4), (4, 8))) for x in (0.1, 0.5, 0.9)]
    done = dict(actors.measure(jobs))
    measure = task.open(0, 1)
    assert done == {job: measure(job.genome, job.key, job.spans) for job in jobs}
    assert pretend.actors == 4
    assert pretend.needs == [{("num_gpus" if on_gpu else "num_cpus"): 1, "max_restarts": 0}]


def test_without_ray_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"install the extra: pip install 'agent-forge\[dist\]'"):
        open_evaluator(Planted(quadratic), settings(backend="ray"), lambda: None)


def test_a_stop_is_noticed_while_workers_work() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    evaluator = pool.open(Planted(quadratic), settings(workers=1), stop)
    with pytest.raises(KeyboardInterrupt):
        list(evaluator.measure([SearchJob(("a", (0.5,) * 6), "key", ((0, 4),))]))
    evaluator.close()


@pytest.mark.parametrize(
    ("device", "resources", "workers_set", "expected"),
    [
        ("cpu", {"CPU": 3.0, "GPU": 8.0}, 0, (3, 4, False)),
        ("cpu", {"CPU": 3.0}, 2, (2, 6, False)),
        ("cpu", {}, 0, (1, 12, False)),
        ("cuda", {"CPU": 3.0, "GPU": 2.0}, 0, (2, 6, True)),
        ("cuda", {"CPU": 3.0, "GPU": 1.0}, 0, (1, 12, True)),
        ("cuda", {"CPU": 3.0, "GPU": 0.5}, 0, (3, 4, False)),  # none is whole
        ("cuda", {"CPU": 3.0}, 0, (3, 4, False)),
    ],
)
def test_ray_gets_a_worker_for_each_accelerator_or_each_core_of_the_cluster(
    device: str, resources: dict[str, float], workers_set: int, expected: tuple[int, int, bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A stand-in for Ray says what the cluster has."""
    cluster = SimpleNamespace(is_initialized=lambda: True, cluster_resources=lambda: resources)
    monkeypatch.setattr(ray, "_ray", lambda: cluster)

    def actors(*given: Any, **how: bool) -> Any:
        _, workers, candidates, _ = given
        assert how["owns_ray"] is False
        return workers, candidates, how["on_gpu"]

    monkeypatch.setattr(ray, "RayActors", actors)
    chosen = settings(workers=workers_set, batch_candidates=12)
    task: Any = SimpleNamespace(device=device)
    assert ray.open(task, chosen, lambda: None) == expected


def test_a_damaged_line_of_a_journal_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    for start in range(3):
        journal.put("a", start, start + 1, [0.25])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1].replace("0.25", "0.75"), lines[2]]))
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        Journal(path)
    path.write_text("".join(lines) + lines[0][:9])  # cut off by a kill while it was written
    again = Journal(path)
    assert (len(again), again.get("a", 2, 3)) == (3, [0.25])
    assert path.read_text() == "".join(lines)
