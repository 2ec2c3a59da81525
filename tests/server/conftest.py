"""A service whose jobs are stubs: processes that write records like workers, without any work."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent_forge import checkpoint
from agent_forge.checkpoint.manifest import MANIFEST
from agent_forge.server.database import Database
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.settings import JobSettings
from agent_forge.server.supervisor import Supervisor

ROOT = Path(__file__).resolve().parents[2]
STUB = ROOT / "scripts" / "bench" / "serve_stub.py"
WAIT_SECONDS = 120.0  # long enough for a busy machine; nothing here is about speed


@pytest.fixture(autouse=True)
def _tree_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let stubs import this tree, wherever the tests run."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


def shelve(source: checkpoint.Checkpoint, folder: Path) -> Path:
    """Link a checkpoint's files into a folder of the caller's own; return that folder."""
    folder.mkdir(parents=True)
    for name in (*source.manifest.files, MANIFEST):
        os.link(source.path / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def shelf(
    tiny_checkpoint: checkpoint.Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> checkpoint.Checkpoint:
    """Return the tiny checkpoint in a directory that holds nothing else, for those who list it."""
    return checkpoint.open(shelve(tiny_checkpoint, tmp_path_factory.mktemp("shelf") / "tiny"))


def stub_launcher() -> LocalLauncher:
    """Return a launcher that starts the stub instead of forge.

    On a busy machine a stub of background priority would not come to run for a long time.
    """
    return LocalLauncher([sys.executable, "-S", str(STUB)], gives_way=False)


def quick_settings(**changes: object) -> JobSettings:
    """Return settings that look often and wait briefly."""
    values = {"gpus": [], "poll_seconds": 0.02, "grace_seconds": 20.0, "check_seconds": 0.2}
    return JobSettings(**{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """Return an empty database."""
    opened = Database(tmp_path / "service" / "forge.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def supervisor(database: Database) -> Iterator[Supervisor]:
    """Return a supervisor of stub jobs that runs; its jobs are ended with it."""
    running = Supervisor(database, database.path.parent, stub_launcher(), settings=quick_settings())
    running.start()
    yield running
    end_jobs(running)
    running.close()


def end_jobs(supervisor: Supervisor) -> None:
    """End every job, by force where it does not stop."""
    supervisor.settings.grace_seconds = 0.5
    supervisor.set_queue(paused=True)
    for job in supervisor.list():
        if job.active:
            supervisor.cancel(job.id)
    until(lambda: not supervisor.queue().active)


def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Wait until a condition holds. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come to hold"
        time.sleep(0.01)


def until_state(supervisor: Supervisor, job: Job, *states: JobState) -> Job:
    """Wait until a job is in one of the states; return it."""
    until(lambda: supervisor.get(job.id).state in states)
    return supervisor.get(job.id)
