"""Ray: a search on a cluster of two nodes, one of which is killed, and a search whose own process
is killed.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from agent_forge.search.evolve import evolve
from tests.search.planted import Bench, Planted, Vectors, quadratic, settings

ray = pytest.importorskip("ray", reason="the extra 'dist' is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(120),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
STORE_BYTES = 100_000_000


def test_a_search_on_two_nodes_survives_the_death_of_one(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    space, log = Vectors(), tmp_path / "log"
    chosen = settings(generations=4)
    with Bench(Planted(quadratic, noise=0.1), chosen, space) as scorer:
        expected = evolve(space, scorer, (), chosen, 3)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
        },
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        cluster.wait_for_nodes()
        task = Planted(quadratic, noise=0.1, log=str(log), seconds=0.05)
        pooled = settings(generations=4, backend="ray", workers=2, ray_address=cluster.address)
        killed = threading.Event()

        def kill() -> None:
            while (
                not log.exists()
                or len({line.split()[0] for line in log.read_text().splitlines()}) < 2
            ):
                time.sleep(0.02)
            cluster.remove_node(second, allow_graceful=False)
            killed.set()

        thread = threading.Thread(target=kill, daemon=True)
        with Bench(task, pooled, space) as scorer:
            thread.start()
            evolution = evolve(space, scorer, (), pooled, 3)
        assert killed.is_set()
        assert [m.key for m in evolution.members] == [m.key for m in expected.members]
        assert evolution.best.fitness == expected.best.fitness
    finally:
        ray.shutdown()
        cluster.shutdown()


CHILD = """
import sys
from pathlib import Path
from agent_forge.search.evolve import evolve
from tests.search.planted import Bench, Planted, Vectors, quadratic, settings

if __name__ == "__main__":
    chosen = settings(backend="ray", workers=1, generations=4)
    task = Planted(quadratic, noise=0.1, seconds=0.02)
    with Bench(task, chosen, Vectors(), journal=Path(sys.argv[1])) as scorer:
        evolve(Vectors(), scorer, (), chosen, 3)
"""


def test_a_killed_search_leaves_no_process_and_ends_in_the_same_genome(tmp_path: Path) -> None:
    script, journal, space = tmp_path / "child.py", tmp_path / "journal.jsonl", Vectors()
    script.write_text(CHILD)
    child = subprocess.Popen(
        [sys.executable, str(script), str(journal)], env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    while not journal.exists() or journal.read_bytes().count(b"\n") < 30:
        assert child.poll() is None
        time.sleep(0.02)
    # Agents of Ray notice the death of their raylet on their own, some time later.
    started = [
        p for p in psutil.Process(child.pid).children(recursive=True) if "Agent" not in p.name()
    ]
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    measured = journal.read_bytes().count(b"\n")
    chosen = settings(generations=4)
    genomes = []
    for path in (journal, None):
        with Bench(Planted(quadratic, noise=0.1), chosen, space, journal=path) as scorer:
            genomes.append(evolve(space, scorer, (), chosen, 3))
    assert journal.read_bytes().count(b"\n") > measured
    assert [m.key for m in genomes[0].members] == [m.key for m in genomes[1].members]
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive
