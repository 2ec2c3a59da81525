"""Two processes on gloo: the loss curve of one, only rank 0 writes, a killed rank ends the
other.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("engine_child.py")
pytestmark = pytest.mark.slow


def run_ranks(
    folder: Path, *arguments: str, size: int = 2, **environment: str
) -> list[subprocess.CompletedProcess]:
    """Start `size` ranks as torchrun would, and wait for all."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port, "FORGE_RANK_TIMEOUT_SECONDS": "30", "GLOO_SOCKET_IFNAME": "lo", **environment,
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), "0", "0", *arguments],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip
    done = []
    for rank in ranks:
        output, errors = rank.communicate(timeout=200)
        done.append(subprocess.CompletedProcess(rank.args, rank.returncode, output, errors))
    return done


def result(folder: Path) -> dict[str, Any]:
    results = json.loads((folder / "result.json").read_text())
    return {
        "losses": [float.fromhex(loss) for loss in results["losses"]], "weights": float.fromhex(results["weights"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "shard"), [("adamw", ""), ("muon", ""), ("adamw", "shard"), ("muon", "shard")]
)
def test_two_processes_give_the_loss_curve_and_weights_of_one(
    tmp_path: Path, method: str, shard: str
) -> None:
    (single,) = run_ranks(tmp_path / "one", method, size=1)
    assert single.returncode == 0, single.stderr
    for rank in run_ranks(tmp_path / "two", method, shard):
        assert rank.returncode == 0, rank.stderr
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5 if method == "adamw" else 2e-3)
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5 if method == "adamw" else 1e-3)


@pytest.mark.parametrize("shard", ["", "shard"])
def test_a_killed_rank_ends_the_other_and_the_run_resumes(tmp_path: Path, shard: str) -> None:
    started = time.monotonic()
    zero, one = run_ranks(tmp_path, "adamw", shard, DIE_AT="1:4", SAVE_ALWAYS="1")
    assert one.returncode == 9
    assert zero.returncode == 1, zero.stderr
    assert "another process of this run is gone" in zero.stderr
    assert time.monotonic() - started < 150
    states = tmp_path / ".forge" / "out" / "state" / "stage"
    assert not (states / "final").exists()
    assert not (tmp_path / "result.json").exists()
    assert sorted(path.name for path in states.iterdir() if not path.name.startswith("step-")) == []
    for rank in run_ranks(tmp_path, "adamw", shard, SAVE_ALWAYS="1"):
        assert rank.returncode == 0, rank.stderr
    for rank in run_ranks(tmp_path / "whole", "adamw", shard):
        assert rank.returncode == 0, rank.stderr
    assert result(tmp_path) == result(tmp_path / "whole")


def test_another_number_of_processes_is_refused_on_resume(tmp_path: Path) -> None:
    run_ranks(tmp_path, "adamw", DIE_AT="1:4", SAVE_ALWAYS="1")
    (single,) = run_ranks(tmp_path, "adamw", size=1)
    assert single.returncode == 2
    assert "processes was 2, is 1" in single.stderr
