"""SIGTERM, Ctrl-C, kill -9 and a second writer: the same command ends in the same bytes."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agent_forge import checkpoint
from agent_forge.checkpoint import record_dir
from agent_forge.cli.layout import short_id
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import LockedError
from agent_forge.core.events import read_events
from agent_forge.pipeline.child import died
from agent_forge.pipeline.outcome import EVENTS
from agent_forge.pipeline.run_phase import run_phase

pytestmark = pytest.mark.timeout(900)
Quick = Callable[..., PhaseConfig]
AsFile = Callable[[PhaseConfig], str]
Forge = Callable[..., "subprocess.CompletedProcess[str]"]
Start = Callable[..., "subprocess.Popen[str]"]
LONG = "train.steps=150"
DEADLINE_SECONDS = 240


def wait_for(
    condition: Callable[[], object], what: str, process: "subprocess.Popen[str] | None" = None
) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def training(out: Path) -> bool:
    return any(
        event.kind == "progress" and event.total == 150
        for event in read_events(record_dir(out) / EVENTS)
    )


def saved(out: Path) -> list[Path]:
    return sorted((record_dir(out) / "state").rglob("step-*"))


@pytest.fixture(scope="module")
def uninterrupted(quick: Quick, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the id that the long phase ends in when nobody stops it."""
    outcome = run_phase(
        "bitnet", quick(tmp_path_factory.mktemp("whole") / "bitnet", LONG, "gate.enabled=false")
    )
    assert outcome.status == "done", outcome.message
    return outcome.checkpoint_id


def test_sigterm_saves_and_the_resumed_run_passes_over_a_damaged_state(
    uninterrupted: str, quick: Quick, tmp_path: Path, start_forge: Start, as_file: AsFile
) -> None:
    """Faults 4, 9 and 10: the whole process group is told.

    The newest saved state is then damaged.
    """
    out = tmp_path / "bitnet"
    file = as_file(quick(out, LONG, "gate.enabled=false", "runtime.save_every_seconds=0"))
    process = start_forge("bitnet", "--config", file)
    wait_for(lambda: len(saved(out)) == 2, "two saved states", process)
    os.killpg(process.pid, signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 75, stderr
    assert "bitnet stopped by SIGTERM; the same command goes on from here" in stderr
    assert stdout == ""
    assert not out.exists()
    states = saved(out)
    assert len(states) == 2
    tensors = states[-1] / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    again = start_forge("bitnet", "--config", file)
    stdout, stderr = again.communicate(timeout=DEADLINE_SECONDS)
    assert again.returncode == 0, stderr
    assert f"passed over a damaged training state {states[-1]}" in stderr
    assert checkpoint.open(out).id == uninterrupted
    assert short_id(uninterrupted) in stdout


def test_a_second_process_is_refused_and_the_lock_is_free_after_kill_9(
    uninterrupted: str,
    quick: Quick,
    tmp_path: Path,
    start_forge: Start,
    forge: Forge,
    as_file: AsFile,
) -> None:
    """Faults 1 and 12.

    The worker is stopped while it holds the lock, so that nothing depends on speed.
    """
    out = tmp_path / "bitnet"
    file = as_file(quick(out, LONG, "gate.enabled=false"))
    first = start_forge("bitnet", "--config", file)
    wait_for(lambda: training(out), "training", first)
    (worker,) = psutil.Process(first.pid).children()
    worker.suspend()
    second = forge("bitnet", "--config", file)
    assert second.returncode == 73
    assert f"is being written by pid {worker.pid} on {socket.gethostname()}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    status = forge("status", str(tmp_path), "--json")
    assert '"status": "running"' in status.stdout
    first.kill()
    first.communicate()
    wait_for(
        lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE,
        "the worker to die",
    )
    assert "interrupted" in forge("status", str(tmp_path), "--json").stdout
    third = forge("bitnet", "--config", file)
    assert third.returncode == 0, third.stderr
    assert checkpoint.open(out).id == uninterrupted


def test_ctrl_c_ends_in_130_and_is_resumable(
    quick: Quick, tmp_path: Path, start_forge: Start, as_file: AsFile
) -> None:
    out = tmp_path / "bitnet"
    process = start_forge("bitnet", "--config", as_file(quick(out, LONG, "gate.enabled=false")))
    wait_for(lambda: training(out), "training", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 130, stderr
    assert "stopped by SIGINT; the same command goes on from here" in stderr
    assert "Traceback" not in stderr
    assert saved(out)


def test_the_first_ctrl_c_is_noted_and_the_second_ends_the_process_at_once(tmp_path: Path) -> None:
    """Fault 11, in a process that never comes to a safe point."""
    script = (
        "import sys, time\nfrom agent_forge.checkpoint import Workspace\n"
        "out = Workspace(sys.argv[1], phase='test', seed=0, config={})\nout.listen_for_signals()\n"
        "print('ready', flush=True)\n"
        "while not out.stop_signal: time.sleep(0.01)\n"
        "print('noted', flush=True)\n"
        "while True: time.sleep(0.01)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "x")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert lines.readline() == "noted\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == -signal.SIGINT


@pytest.mark.parametrize(
    ("exit_code", "errors", "status", "code", "message"),
    [
        (-signal.SIGINT, "", "interrupted", 130, "killed by SIGINT"),
        (-signal.SIGTERM, "", "interrupted", 75, "killed by SIGTERM"),
        (-signal.SIGKILL, "", "interrupted", 75, "running out of memory"),
        (-signal.SIGSEGV, "", "failed", 1, "crashed with SIGSEGV"),
        (
            73,
            "x\nLockedError: d is being written by pid 1",
            "failed",
            73,
            "bitnet stopped: d is being written by pid 1",
        ),
        (74, "StorageError: disk full while writing x", "failed", 74, "disk full while writing x"),
        (
            75,
            "Interrupted: stopped by SIGTERM",
            "interrupted",
            75,
            "stopped; the same command goes",
        ),
        (
            130,
            "Interrupted: stopped by SIGINT",
            "interrupted",
            130,
            "stopped; the same command goes",
        ),
        (1, "Traceback\nKeyError: 'k'", "failed", 1, "this is a defect"),
    ],
)
def test_the_end_of_a_worker_that_left_no_outcome_is_told(
    tmp_path: Path, exit_code: int, errors: str, status: str, code: int, message: str
) -> None:
    outcome = died("bitnet", "hash", exit_code, errors, tmp_path)
    assert (outcome.status, outcome.exit_code) == (status, code)
    assert message in outcome.message
    assert "\n" not in outcome.message


def test_a_lock_of_a_killed_holder_can_be_taken_and_a_held_one_names_its_holder(
    tmp_path: Path,
) -> None:
    with (
        checkpoint.DirectoryLock(tmp_path),
        pytest.raises(LockedError, match=f"pid {os.getpid()} on"),
    ):
        checkpoint.DirectoryLock(tmp_path).__enter__()
    with checkpoint.DirectoryLock(tmp_path):
        pass
