"""Ray: a cluster of two nodes on this machine, one of which is killed in the middle of the search."""

import threading
import time
from pathlib import Path

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
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": STORE_BYTES},
    )
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        cluster.wait_for_nodes()
        task = Planted(quadratic, noise=0.1, log=str(log), seconds=0.05)
        pooled = settings(generations=4, backend="ray", workers=2, ray_address=cluster.address)
        killed = threading.Event()

        def kill() -> None:
            while not log.exists() or len({line.split()[0] for line in log.read_text().splitlines()}) < 2:
                time.sleep(0.02)
            cluster.remove_node(second, allow_graceful=False)
            killed.set()

        thread = threading.Thread(target=kill, daemon=True)
        with Bench(task, pooled, space) as scorer:
            thread.start()
            found = evolve(space, scorer, (), pooled, 3)
        assert killed.is_set()
        assert [m.key for m in found.members] == [m.key for m in expected.members]
        assert found.best.fitness == expected.best.fitness
    finally:
        ray.shutdown()
        cluster.shutdown()
