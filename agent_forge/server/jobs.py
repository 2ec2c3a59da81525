"""What a job is, the states it goes through, and its row in the database.

    queued ──> running ──> succeeded | rejected | failed | interrupted
      │  ^        ├──> pausing ────> paused ──> queued      (resume)
      │  └────────┤                    └──> cancelled
      │           └──> cancelling ──> cancelled
      └──> paused (held back) | cancelled

`interrupted` and `failed` jobs go back to `queued` on resume: the same command goes on from the
last saved state. What a running job has finished before a stop reached it stands: `pausing` and
`cancelling` jobs may succeed. `paused` is an interruption that was asked for.
"""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from agent_forge.core.errors import ConfigError, did_you_mean

RUN_ALL = "run-all"
SERVICE, TERMINAL = "service", "terminal"


class JobState(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    REJECTED = "rejected"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"


# What a cancelled job says, whatever its process has said of going on.
CANCELLED_MESSAGE = "cancelled for good; to run it again, start a new job"

_S = JobState
_ENDS = frozenset({_S.SUCCEEDED, _S.REJECTED, _S.FAILED, _S.INTERRUPTED})
ALLOWED: Mapping[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.RUNNING, _S.PAUSED, _S.CANCELLED, _S.FAILED}),
    # Back to the queue: the server died before it could launch.
    _S.RUNNING: _ENDS | {_S.PAUSING, _S.CANCELLING, _S.QUEUED},
    _S.PAUSING: frozenset({_S.PAUSED, _S.CANCELLING, _S.SUCCEEDED, _S.REJECTED, _S.FAILED}),
    _S.PAUSED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.SUCCEEDED, _S.REJECTED}),
    _S.INTERRUPTED: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.SUCCEEDED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.CANCELLED: frozenset(),
}
# States with a process, which the supervisor watches.
ACTIVE = frozenset({_S.RUNNING, _S.PAUSING, _S.CANCELLING})
# States that end an attempt; a client that waits for the job may stop waiting.
FINAL = _ENDS | {_S.CANCELLED}


@dataclass(slots=True, kw_only=True)
class Job:
    """One command that the service runs, or a run that it found.

    command: a phase, or "run-all". overrides, sources: as the client gave them; sources are ids of
    checkpoints. progress: percent, weighted over stages and phases; it never falls within an
    attempt. attempt: 1 for the first run, one more for each resume. created, started, ended:
    seconds since the epoch. out, record: directories on the server; they are not for clients.
    results: once it has ended, {"status", "checkpoint_id", "checkpoints", "metrics", ...}, ids
    instead of paths. error_code: forge's exit code, None while it is not known. origin: "service",
    or "terminal" for a run that was started there and can only be watched.
    """

    id: str
    command: str
    overrides: list[str]
    sources: list[str] = field(default_factory=list)
    state: JobState = JobState.QUEUED
    progress: float = 0.0
    message: str = ""
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    attempt: int = 0
    out: str = ""
    record: str = ""
    results: dict[str, Any] = field(default_factory=dict)
    error_code: int | None = None
    origin: str = SERVICE
    position: float = 0.0
    hidden_overrides: list[str] = field(default_factory=list)

    @property
    def active(self) -> bool:
        """Return whether the job has a process."""
        return self.state in ACTIVE


class UnknownJob(ConfigError):
    """No job has this id."""


class WrongState(ConfigError):
    """The job's state does not allow what was asked for."""


def unknown_job(job_id: str, known: list[str]) -> UnknownJob:
    """Return the error for an id that no job has."""
    return UnknownJob(f"no job '{job_id}'{did_you_mean(job_id, known)}")


def check_transition(job: Job, to: JobState) -> None:
    """Raise WrongState where a job cannot go from its state to another."""
    if to not in ALLOWED[job.state]:
        allowed = ", ".join(sorted(ALLOWED[job.state])) or "nothing: it has ended for good"
        raise WrongState(f"job {job.id} is {job.state} and cannot be {to}; allowed: {allowed}")


def end_state(before: JobState, seen: JobState) -> JobState:
    """Return the state of a job whose process has ended.

    before: the state it was in, which may be on the way to a stop. seen: how its process ended.
    """
    if seen in (JobState.SUCCEEDED, JobState.REJECTED):
        return seen
    if before is JobState.CANCELLING:
        return JobState.CANCELLED
    if before is JobState.PAUSING and seen is JobState.INTERRUPTED:
        return JobState.PAUSED
    return seen


_JSON = ("overrides", "hidden_overrides", "sources", "results")
_COLUMNS = tuple(Job.__dataclass_fields__)


def from_row(row: sqlite3.Row) -> Job:
    """Return the job of a row."""
    values = {name: row[name] for name in _COLUMNS}
    values.update({name: json.loads(values[name]) for name in _JSON})
    values["state"] = JobState(values["state"])
    return Job(**values)


def insert(connection: sqlite3.Connection, job: Job) -> None:
    """Add a job's row."""
    names, marks = ", ".join(_COLUMNS), ", ".join("?" * len(_COLUMNS))
    connection.execute(
        f"INSERT INTO job ({names}) VALUES ({marks})",
        [_column(job, name) for name in _COLUMNS],
    )


def update(connection: sqlite3.Connection, job: Job, *names: str) -> None:
    """Write the named fields of a job to its row."""
    changes = ", ".join(f"{name} = ?" for name in names)
    connection.execute(
        f"UPDATE job SET {changes} WHERE id = ?",
        [*(_column(job, name) for name in names), job.id],
    )


def load(connection: sqlite3.Connection, job_id: str) -> Job:
    """Return a job. Raises UnknownJob."""
    row = connection.execute("SELECT * FROM job WHERE id = ?", [job_id]).fetchone()
    if row is None:
        known = [row["id"] for row in connection.execute("SELECT id FROM job")]
        raise unknown_job(job_id, known)
    return from_row(row)


def _column(job: Job, name: str) -> Any:
    value = getattr(job, name)
    return json.dumps(value) if name in _JSON else value
