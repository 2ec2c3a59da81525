"""A phase trained by two gloo processes: under torchrun, and started by runtime.processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from agent_forge.checkpoint import Checkpoint, record_dir
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import read_events
from agent_forge.pipeline.outcome import EVENTS, read_outcome
from agent_forge.pipeline.run_phase import run_phase
from tests.conftest import forge_environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Quick = Callable[..., PhaseConfig]
AsFile = Callable[[PhaseConfig], str]
OTHER = {"FORGE_RANK_TIMEOUT_SECONDS": "30", "GLOO_SOCKET_IFNAME": "lo"}


@pytest.fixture(scope="module", autouse=True)
def _loopback() -> Any:
    """Let gloo talk over the loopback device."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OTHER.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def alone(quick: Quick, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what one process makes."""
    out = tmp_path_factory.mktemp("alone") / "bitnet"
    outcome = run_phase("bitnet", quick(out, "gate.enabled=false"))
    assert outcome.status == "done", outcome.message
    return out


def torchrun(settings: str) -> "subprocess.Popen[str]":
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "agent_forge",
    ]
    return subprocess.Popen(
        [*command, "bitnet", "--config", settings], env=forge_environment(**OTHER),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def assert_same_training(one: Path, other: Path, parent: Path) -> None:
    """Compare losses, and what training moved: sums in another order may flip single ternary codes
    on the way.
    """
    last = [
        [
            event.metrics["loss"]
            for event in read_events(record_dir(out) / EVENTS)
            if "loss" in event.metrics
        ][-1]
        for out in (one, other)
    ]
    assert last[1] == pytest.approx(last[0], rel=1e-3)
    first, second, start = (
        load_file(place / "model.safetensors") for place in (one, other, parent)
    )
    moved = sum(float((first[name] - start[name]).square().sum()) for name in first)
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    assert apart < 0.01 * moved


def test_torchrun_trains_one_model_and_rank_0_alone_writes_and_speaks(
    alone: Path, quick: Quick, as_file: AsFile, tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    out = tmp_path / "bitnet"
    started = torchrun(as_file(quick(out, "gate.enabled=false")))
    output, errors = started.communicate(timeout=500)
    assert started.returncode == 0, errors
    assert output.count("bitnet: ") == 1
    assert_same_training(alone, out, tiny_checkpoint.path)
    events = list(read_events(record_dir(out) / EVENTS))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert sum(event.kind == "start" for event in events) == 1
    assert not (record_dir(out) / "state").exists()
    # done: both processes find nothing to do
    again = torchrun(as_file(quick(out, "gate.enabled=false")))
    output, errors = again.communicate(timeout=500)
    assert again.returncode == 0, errors
    assert len(list(read_events(record_dir(out) / EVENTS))) == len(events)


def test_runtime_processes_starts_them_and_the_gate_runs_once(
    alone: Path, quick: Quick, tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    out = tmp_path / "bitnet"
    outcome = run_phase("bitnet", quick(out, "runtime.processes=2", "gate.on_failure=continue"))
    assert outcome.status == "done", outcome.message
    events = list(read_events(record_dir(out) / EVENTS))
    assert sum(event.kind == "gate" for event in events) == 1
    assert_same_training(alone, out, tiny_checkpoint.path)


def test_a_killed_rank_ends_the_others_and_nothing_is_marked_complete(
    quick: Quick, as_file: AsFile, tmp_path: Path
) -> None:
    out = tmp_path / "bitnet"
    started = torchrun(as_file(quick(out, "gate.enabled=false", "train.steps=400")))
    end = time.monotonic() + 240
    while not any(event.total == 400 for event in read_events(record_dir(out) / EVENTS)):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    workers = [
        process for process in psutil.Process(started.pid).children(recursive=True)
        if "agent_forge.pipeline.worker" in " ".join(process.cmdline())
    ]  # fmt: skip
    assert len(workers) == 2
    next(process for process in workers if process.environ()["RANK"] == "1").send_signal(
        signal.SIGKILL
    )
    output, errors = started.communicate(timeout=120)
    assert started.returncode != 0, output + errors
    assert not out.exists()
    outcome = read_outcome(record_dir(out))
    assert outcome is None or outcome.status in ("failed", "interrupted")
    assert not any(
        psutil.pid_exists(process.pid) and process.status() != "zombie" for process in workers
    )


def test_sigterm_stops_all_and_is_resumable(quick: Quick, as_file: AsFile, tmp_path: Path) -> None:
    out = tmp_path / "bitnet"
    settings = as_file(quick(out, "gate.enabled=false", "train.steps=400", "runtime.processes=2"))
    started = subprocess.Popen(
        [sys.executable, "-m", "agent_forge", "bitnet", "--config", settings],
        env=forge_environment(**OTHER), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    end = time.monotonic() + 240
    while not any(event.total == 400 for event in read_events(record_dir(out) / EVENTS)):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    started.terminate()
    _, errors = started.communicate(timeout=120)
    assert started.returncode == 75, errors
    states = list((record_dir(out) / "state").rglob("step-*/state.json"))
    assert states
    assert json.loads(states[-1].read_text())["settings"]["processes"] == 2


def test_what_cannot_be_run_by_several_processes_says_so(
    quick: Quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"runtime\.processes=2 starts processes itself"):
        run_phase("bitnet", quick(tmp_path / "x", "runtime.processes=2"))
    with pytest.raises(ConfigError, match="evomerge does not train with several processes"):
        run_phase("evomerge", quick(tmp_path / "x"))
    done = subprocess.run(
        [sys.executable, "-m", "agent_forge", "run-all"], env={**os.environ, **forge_environment()},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "set runtime.processes" in done.stderr
