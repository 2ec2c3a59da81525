"""Runs that were started in a terminal are found, shown and judged by their locks and outcomes."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent_forge.checkpoint import DirectoryLock
from agent_forge.core.events import EventLog
from agent_forge.pipeline.outcome import COMMAND, Outcome
from agent_forge.server.database import Database
from agent_forge.server.jobs import JobState, WrongState
from agent_forge.server.supervisor import Supervisor
from tests.server.conftest import STUB, quick_settings, stub_launcher, until


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def watching(database: Database, outputs: Path) -> Iterator[Supervisor]:
    """Return a supervisor that looks for runs in `outputs`."""
    settings = quick_settings(watch=[outputs])
    running = Supervisor(database, database.path.parent, stub_launcher(), settings=settings)
    running.start()
    yield running
    running.close()


def start(out: Path, *settings: str) -> "subprocess.Popen[bytes]":
    """Start a stub as a user would start a phase."""
    environment = {**os.environ, "FORGE_ATTEMPT": "mine", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(STUB), "train", f"out={out}", *settings], env=environment
    )


def states(supervisor: Supervisor) -> list[str]:
    return [str(job.state) for job in supervisor.list()]


def test_a_run_is_shown_with_its_progress_until_its_end(
    watching: Supervisor, outputs: Path
) -> None:
    process = start(outputs / "mine", "end=hang", "steps=4")
    until(lambda: states(watching) == ["running"])
    (job,) = watching.list()
    assert (job.origin, job.command) == ("terminal", "train")
    until(lambda: watching.get(job.id).progress > 0)
    steps = [e.step for e in watching.events(0, job_id=job.id) if e.kind == "progress"]
    assert steps == [1, 2, 3, 4]
    with pytest.raises(WrongState, match="started in a terminal"):
        watching.cancel(job.id)
    process.terminate()
    process.wait()
    until(lambda: states(watching) == ["interrupted"])
    again = start(outputs / "mine", "steps=6")
    until(lambda: states(watching) == ["succeeded"])
    assert again.wait() == 0
    job = watching.get(job.id)
    assert (job.attempt, job.progress, job.results["status"]) == (2, 100.0, "succeeded")


def test_a_run_that_was_killed_is_interrupted(watching: Supervisor, outputs: Path) -> None:
    process = start(outputs / "mine", "end=hang")
    until(lambda: states(watching) == ["running"])
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: states(watching) == ["interrupted"])


def test_what_ended_before_it_was_found_is_not_replayed(
    watching: Supervisor, outputs: Path
) -> None:
    assert start(outputs / "mine", "steps=3").wait() == 0
    until(lambda: states(watching) == ["succeeded"])
    (job,) = watching.list()
    assert [event.kind for event in watching.events(0, job_id=job.id)] == ["state"]


def test_a_run_of_all_phases_is_one_job(watching: Supervisor, outputs: Path) -> None:
    record = outputs / "run" / ".forge"
    with DirectoryLock(record):
        for name, status in (("1-cognate", "done"), ("2-bitnet", "")):
            place = record / name
            place.mkdir()
            log = EventLog(place / "events.jsonl", name[2:], interval_seconds=0.0)
            log.progress("work", 1, 2)
            log.close()
            if status:
                Outcome(phase="cognate", status=status, input_hash="0").save(place)
            (place / "job.json").write_text('{"phase": "x", "parent_pid": 1}')
        until(lambda: states(watching) == ["running"])
        (job,) = watching.list()
        assert job.command == "run-all"
        until(lambda: len(watching.events(0, job_id=job.id)) >= 3)
    (record / "2-bitnet" / "job.json").write_text('{"phase": "x", "parent_pid": 999999999}')
    until(lambda: states(watching) == ["interrupted"])
    assert watching.get(job.id).state is JobState.INTERRUPTED


def test_a_run_has_the_settings_that_it_was_begun_with_but_no_path(
    watching: Supervisor, outputs: Path
) -> None:
    process = start(outputs / "mine", "end=hang", "steps=4")
    until(lambda: states(watching) == ["running"])
    record = outputs / ".forge" / "mine"
    line = (
        "forge train train.rows=4 'sources=[/home/me/model]' data.cache=/tmp/x seed=1 -c own.yaml"
    )
    (record / COMMAND).write_text(json.dumps({"command": line}))
    process.terminate()
    process.wait()
    until(lambda: states(watching) == ["interrupted"])
    (job,) = watching.list()
    assert job.overrides == ["train.rows=4", "seed=1"]
