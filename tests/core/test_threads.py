"""How many threads products take, and how long waiting threads spin."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

import agent_forge
from agent_forge.core.device import set_threads

CORES = len(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "environment", "used"),
    [
        (3, {"OMP_NUM_THREADS": "2"}, 3),
        (0, {"OMP_NUM_THREADS": "2"}, 2),
        (0, {"OMP_NUM_THREADS": "5,1"}, 5),
        (0, {}, CORES),
        # torchrun sets OMP_NUM_THREADS by itself.
        (0, {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": "1"}, CORES),
        (0, {"OMP_NUM_THREADS": "1", "LOCAL_WORLD_SIZE": str(4 * CORES)}, 1),
    ],
)
def test_the_setting_wins_then_the_variable_then_the_cores(
    threads: int, environment: dict[str, str], used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert set_threads(threads) == used == torch.get_num_threads()


@pytest.mark.parametrize(
    ("chosen", "spins"),
    [({}, agent_forge.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "")],
)
def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise(
    chosen: dict[str, str], spins: str
) -> None:
    bare = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ask = "import agent_forge, os, sys; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT', ''))"
    child = subprocess.run(
        [sys.executable, "-c", ask], env={**bare, **chosen}, capture_output=True, encoding="utf-8"
    )
    assert (child.stdout.strip(), child.returncode) == (spins, 0), child.stderr
