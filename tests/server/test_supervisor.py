"""Jobs of the service: their states, their queue, their events, and that they end."""

import itertools
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError, StorageError
from agent_forge.core.events import EventLog
from agent_forge.pipeline.outcome import EVENTS
from agent_forge.server import database as database_module
from agent_forge.server import jobs, store, watching
from agent_forge.server.database import Database
from agent_forge.server.jobs import ALLOWED, JobState, UnknownJob, WrongState
from agent_forge.server.records import EventFiles
from agent_forge.server.store import Attempt, add_attempt, change_state
from agent_forge.server.supervisor import Supervisor
from agent_forge.server.watching import Watcher
from tests.server.conftest import (
    end_jobs,
    quick_settings,
    stub_launcher,
    until,
    until_state,
)


def test_a_job_runs_to_its_end_and_its_events_are_whole(supervisor: Supervisor) -> None:
    job = until_state(supervisor, supervisor.submit("bitnet", ["steps=3"]), JobState.SUCCEEDED)
    assert (job.progress, job.error_code, job.attempt) == (100.0, 0, 1)
    events = supervisor.events(after=0, job_id=job.id)
    assert [event.step for event in events if event.kind == "progress"] == [1, 2, 3]
    states = [event.metrics["state"] for event in events if event.kind == "state"]
    assert states == ["queued", "running", "succeeded"]
    assert events[-1].metrics["results"]["status"] == "succeeded"
    percents = [event.percent for event in events if event.phase == "bitnet"]
    assert percents == sorted(percents)
    assert [event.seq for event in events] == sorted({event.seq for event in events})


def test_what_a_job_has_made_is_looked_for_before_its_end_is_told(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that sees the end asks for the model at once."""
    seen: list[JobState] = []
    scan = supervisor.registry.scan

    def noted(below: Path | None = None) -> int:
        if below is not None:
            seen.extend(job.state for job in supervisor.list())
        return scan(below)

    monkeypatch.setattr(supervisor.registry, "scan", noted)
    until_state(supervisor, supervisor.submit("bitnet", ["steps=1"]), JobState.SUCCEEDED)
    assert seen == [JobState.RUNNING]


@pytest.mark.parametrize(
    ("end", "state", "code"),
    [("rejected", JobState.REJECTED, 3), ("failed", JobState.FAILED, 1),
     ("crash", JobState.INTERRUPTED, None)],
)  # fmt: skip
def test_a_job_ends_as_its_process_did(
    supervisor: Supervisor, end: str, state: JobState, code: int | None
) -> None:
    job = until_state(supervisor, supervisor.submit("train", [f"end={end}"]), state)
    assert job.error_code in (code, -9)
    assert job.message


@pytest.mark.parametrize("spoke", [True, False])
def test_a_start_that_was_never_noted_is_known_by_what_the_job_has_said(
    database: Database, monkeypatch: pytest.MonkeyPatch, spoke: bool
) -> None:
    """A server that is killed between the process and its handle, and the job with it."""
    monkeypatch.setattr(watching, "FIND_SECONDS", 0.1)
    place = database.path.parent
    first = Supervisor(database, place, stub_launcher(), settings=quick_settings())
    job = first.submit("train", ["steps=3"])
    attempt = Attempt(
        id="lost", job_id=job.id, number=1, launcher="local", handle=None, gpus=[], created=1.0,
        stop_sent=None, kill_sent=None, positions={},
    )  # fmt: skip

    def begin(connection: Any) -> None:
        change_state(connection, job, JobState.RUNNING, attempt=1)
        add_attempt(connection, attempt)

    first.change(begin)
    record = Path(job.record)
    record.mkdir(parents=True)
    log = EventLog(record / EVENTS, "train", attempt="lost" if spoke else "of another")
    log.emit("start", message="it begins")
    log.close()
    second = Supervisor(database, place, stub_launcher(), settings=quick_settings())
    second.start()
    try:
        end = until_state(second, job, JobState.INTERRUPTED, JobState.SUCCEEDED)
        assert (end.state, end.attempt) == (
            (JobState.INTERRUPTED, 1) if spoke else (JobState.SUCCEEDED, 2)
        )
        assert "it begins" in [event.message for event in second.events(0, job_id=job.id)]
    finally:
        second.close()


def test_only_allowed_changes_of_state_are_taken() -> None:
    for state, to in itertools.product(JobState, JobState):
        job = jobs.Job(id="x", command="train", overrides=[], state=state)
        if to in ALLOWED[state]:
            jobs.check_transition(job, to)
        else:
            with pytest.raises(WrongState, match=f"is {state} and cannot be {to}"):
                jobs.check_transition(job, to)
    assert set(ALLOWED) == set(JobState)


def test_a_waiting_job_can_be_held_back_and_cancelled(supervisor: Supervisor) -> None:
    supervisor.set_queue(paused=True)
    job = supervisor.submit("train")
    assert supervisor.pause(job.id).state is JobState.PAUSED
    assert supervisor.pause(job.id).state is JobState.PAUSED
    assert supervisor.resume(job.id).state is JobState.QUEUED
    assert supervisor.cancel(job.id).state is JobState.CANCELLED
    with pytest.raises(WrongState, match="is cancelled"):
        supervisor.resume(job.id)
    with pytest.raises(UnknownJob, match="no job 'nobody'"):
        supervisor.cancel("nobody")


def test_a_paused_job_goes_on_where_it_was(supervisor: Supervisor) -> None:
    job = supervisor.submit("train", ["steps=40", "pause=0.02"])
    until(lambda: supervisor.get(job.id).progress > 5)
    with pytest.raises(WrongState, match="is running"):
        supervisor.resume(job.id)
    supervisor.pause(job.id)
    paused = until_state(supervisor, job, JobState.PAUSED)
    assert paused.progress < 100
    supervisor.resume(job.id)
    job = until_state(supervisor, job, JobState.SUCCEEDED)
    assert job.attempt == 2
    events = supervisor.events(after=0, job_id=job.id)
    assert [event.step for event in events if event.kind == "progress"] == list(range(1, 41))


def test_a_job_that_ignores_the_request_to_stop_is_ended(supervisor: Supervisor) -> None:
    supervisor.settings.grace_seconds = 0.3
    job = supervisor.submit("train", ["stubborn=1", "end=hang"])
    until(lambda: supervisor.get(job.id).progress > 0)
    assert supervisor.cancel(job.id).state is JobState.CANCELLING
    assert until_state(supervisor, job, JobState.CANCELLED).ended is not None


def test_a_key_names_one_request(supervisor: Supervisor) -> None:
    first = supervisor.submit("train", ["steps=1"], idempotency_key="once")
    assert supervisor.submit("train", ["steps=1"], idempotency_key="once").id == first.id
    with pytest.raises(ConfigError, match="was used for another request"):
        supervisor.submit("train", ["steps=2"], idempotency_key="once")
    assert len(supervisor.list()) == 1


def test_jobs_run_in_the_order_that_was_set(supervisor: Supervisor) -> None:
    supervisor.set_queue(paused=True)
    first, second, third = (supervisor.submit("train", ["steps=1"]) for _ in range(3))
    order = [job.id for job in supervisor.reorder([third.id, first.id])]
    assert order == [third.id, first.id, second.id]
    supervisor.set_queue(paused=False)
    for job in (first, second, third):
        until_state(supervisor, job, JobState.SUCCEEDED)
    begun = sorted(supervisor.list(), key=lambda job: job.started or 0.0)
    assert [job.id for job in begun] == order


def test_the_database_is_whole_and_private_after_jobs(supervisor: Supervisor) -> None:
    until_state(supervisor, supervisor.submit("train"), JobState.SUCCEEDED)
    path = supervisor.database.path
    assert path.stat().st_mode & 0o077 == 0
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    connection.close()


def test_a_failed_job_pauses_a_queue_that_does_not_go_on_after_errors(
    supervisor: Supervisor,
) -> None:
    assert supervisor.queue().continue_on_error
    supervisor.set_queue(continue_on_error=False)
    failed, waiting = supervisor.submit("train", ["end=failed"]), supervisor.submit("train")
    until_state(supervisor, failed, JobState.FAILED)
    until(lambda: supervisor.queue().paused)
    assert supervisor.get(waiting.id).state is JobState.QUEUED
    supervisor.set_queue(paused=False)
    until_state(supervisor, waiting, JobState.SUCCEEDED)
    assert supervisor.resume(failed.id).state is JobState.QUEUED


def test_each_job_has_accelerators_of_its_own(database: Database) -> None:
    settings = quick_settings(gpus=["3", "7"])
    supervisor = Supervisor(database, database.path.parent, stub_launcher(), settings=settings)
    supervisor.start()
    first, second, both = (
        supervisor.submit("train", ["end=hang", f"runtime.processes={count}"])
        for count in (1, 1, 2)
    )
    until(lambda: len(supervisor.queue().active) == 2)
    with database.read() as connection:
        taken = [store.last_attempt(connection, job.id) for job in (first, second)]
    assert [attempt.gpus for attempt in taken if attempt] == [["3"], ["7"]]
    assert supervisor.get(both.id).state is JobState.QUEUED
    supervisor.cancel(first.id)
    until_state(supervisor, first, JobState.CANCELLED)
    assert supervisor.get(both.id).state is JobState.QUEUED
    supervisor.cancel(second.id)
    until_state(supervisor, both, JobState.RUNNING)
    with pytest.raises(ConfigError, match="needs as many accelerators"):
        supervisor.submit("train", ["runtime.processes=3"])
    end_jobs(supervisor)
    supervisor.close()


def test_a_full_disk_refuses_new_jobs_and_shows_the_others(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = until_state(supervisor, supervisor.submit("train"), JobState.SUCCEEDED)
    monkeypatch.setattr(database_module, "RESERVE_BYTES", 1 << 60)
    with pytest.raises(StorageError, match="bytes are free"):
        supervisor.submit("train")
    assert [listed.id for listed in supervisor.list()] == [job.id]


def test_requests_that_cross_one_another_are_defined(supervisor: Supervisor) -> None:
    job = supervisor.submit("train", ["end=hang", "stubborn=1"])
    until(lambda: supervisor.get(job.id).progress > 0)
    assert supervisor.pause(job.id).state is JobState.PAUSING
    with pytest.raises(WrongState, match="is pausing"):
        supervisor.resume(job.id)
    assert supervisor.cancel(job.id).state is JobState.CANCELLING
    with pytest.raises(WrongState, match="is cancelling"):
        supervisor.pause(job.id)
    supervisor.settings.grace_seconds = 0.1
    until_state(supervisor, job, JobState.CANCELLED)
    assert supervisor.cancel(job.id).state is JobState.CANCELLED
    with pytest.raises(CheckpointError, match="no checkpoint 'nothing'"):
        supervisor.submit("train", sources=["nothing"])


def test_one_unreadable_record_does_not_hide_the_other_jobs(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.settings.cpu_jobs = 2
    broken = supervisor.submit("train", ["end=hang"])
    until(lambda: supervisor.get(broken.id).progress > 0)
    read = EventFiles.read

    def fails(files: EventFiles) -> object:
        if broken.id in str(files.record):
            raise PermissionError(13, "no", "events.jsonl")
        return read(files)

    monkeypatch.setattr(EventFiles, "read", fails)
    until_state(supervisor, supervisor.submit("train"), JobState.SUCCEEDED)
    monkeypatch.undo()


def test_a_defect_of_the_supervisor_is_told_to_whoever_asks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor(
        database, database.path.parent, stub_launcher(), settings=quick_settings()
    )
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(Watcher, "look", lambda _: {}["a defect"])
    supervisor.start()
    until(lambda: supervisor._defect is not None)
    with pytest.raises(PhaseError, match="not watched any more"):
        supervisor.submit("train")
    supervisor.close()
