"""Rows of attempts and events. All functions take the connection of a read or of a change."""

import json
import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent_forge.core.events import Position
from agent_forge.server import jobs
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.launchers import Handle

# The kind of events that the service writes itself, when a job changes its state.
STATE = "state"


@dataclass(slots=True, kw_only=True)
class StoredEvent:
    """One event of any job, with a sequence number of the whole service that is never used twice.

    kind: as in core.events; or "state": the job has changed its state, metrics is then {"state",
    "command", "results", "error_code"}. phase: the phase that spoke; for "state" the job's command.
    percent: of the phase. progress: percent of the job. Paths are replaced by ids.
    """

    seq: int
    job_id: str
    attempt: int
    time: float
    kind: str
    phase: str
    stage: str = ""
    step: int = 0
    total: int = 0
    percent: float = 0.0
    progress: float = 0.0
    message: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One start of a job's command. positions: file of events -> how far it was read."""

    id: str
    job_id: str
    number: int
    launcher: str
    handle: Handle | None
    gpus: list[str]
    created: float
    stop_sent: float | None
    kill_sent: float | None
    positions: dict[str, Position]


def change_state(connection: sqlite3.Connection, job: Job, state: JobState, **values: Any) -> int:
    """Take a job to another state, with further fields, and tell it; return the event's number.

    Raises WrongState. `job` is changed with its row.
    """
    jobs.check_transition(job, state)
    if state is JobState.CANCELLED:
        values["message"] = jobs.CANCELLED_MESSAGE
    return note_state(connection, job, state, **values)


def note_state(connection: sqlite3.Connection, job: Job, state: JobState, **values: Any) -> int:
    """Give a job the state that it was seen in; return the event's number."""
    job.state = state
    for name, value in values.items():
        setattr(job, name, value)
    jobs.update(connection, job, "state", *values)
    metrics: dict[str, Any] = {"state": state, "command": job.command}
    if state in jobs.FINAL or state is JobState.PAUSED:
        metrics |= {"results": job.results, "error_code": job.error_code}
    return add_event(
        connection,
        StoredEvent(
            seq=0, job_id=job.id, attempt=job.attempt, time=time.time(), kind=STATE,
            phase=job.command, percent=job.progress, progress=job.progress, message=job.message,
            metrics=metrics,
        ),
    )  # fmt: skip


def add_event(
    connection: sqlite3.Connection, event: StoredEvent, source: str = "", source_seq: int = 0
) -> int:
    """Add an event, once for each (source, source_seq) of a job; return its number."""
    cursor = connection.execute(
        "INSERT OR IGNORE INTO event (job_id, attempt, source, source_seq, time, kind, phase, "
        "stage, step, total, percent, progress, message, metrics) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [event.job_id, event.attempt, source, source_seq, event.time, event.kind, event.phase,
         event.stage, event.step, event.total, event.percent, event.progress, event.message,
         json.dumps(event.metrics)],
    )  # fmt: skip
    return cursor.lastrowid or 0


# What is left of a job's events without the points of its curves; the newest of each phase stays,
# for it says how far the phase is and holds its table.
WITHOUT_POINTS = """ AND (kind != 'progress' OR seq IN (
    SELECT max(seq) FROM event WHERE job_id = ? AND kind = 'progress' GROUP BY phase))"""


def events(
    connection: sqlite3.Connection,
    after: int,
    limit: int,
    job_id: str | None = None,
    *,
    points: bool = True,
) -> list[StoredEvent]:
    """Return up to `limit` events behind the number `after`, of one job or of all.

    points: whether those that are points of a job's curves are wanted too.
    """
    where, values = "seq > ?", [after, limit]
    if job_id is not None:
        where, values = "seq > ? AND job_id = ?", [after, job_id, limit]  # type: ignore[list-item]
        if not points:
            where += WITHOUT_POINTS
            values.insert(2, job_id)  # type: ignore[arg-type]
    rows = connection.execute(f"SELECT * FROM event WHERE {where} ORDER BY seq LIMIT ?", values)
    return [
        StoredEvent(
            **{name: row[name] for name in StoredEvent.__dataclass_fields__ if name != "metrics"},
            metrics=json.loads(row["metrics"]),
        )
        for row in rows
    ]


def percents(connection: sqlite3.Connection, job_id: str, attempt: int) -> dict[str, float]:
    """Return how far each phase of an attempt is, by its stored events."""
    rows = connection.execute(
        "SELECT phase, max(percent) AS percent FROM event "
        "WHERE job_id = ? AND attempt = ? AND kind != ? GROUP BY phase",
        [job_id, attempt, STATE],
    )
    return {row["phase"]: row["percent"] for row in rows}


def add_attempt(connection: sqlite3.Connection, attempt: Attempt) -> None:
    """Add an attempt that is about to be launched."""
    connection.execute(
        "INSERT INTO attempt (id, job_id, number, launcher, gpus, created, positions) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [attempt.id, attempt.job_id, attempt.number, attempt.launcher, json.dumps(attempt.gpus),
         attempt.created, _plain(attempt.positions)],
    )  # fmt: skip


def last_attempt(connection: sqlite3.Connection, job_id: str) -> Attempt | None:
    """Return a job's newest attempt."""
    row = connection.execute(
        "SELECT * FROM attempt WHERE job_id = ? ORDER BY number DESC LIMIT 1", [job_id]
    ).fetchone()
    if row is None:
        return None
    values = {name: row[name] for name in Attempt.__dataclass_fields__}
    values["handle"] = json.loads(row["handle"]) if row["handle"] else None
    values["gpus"] = json.loads(row["gpus"])
    values["positions"] = {
        name: Position(*place) for name, place in json.loads(row["positions"]).items()
    }
    return Attempt(**values)


def note_attempt(connection: sqlite3.Connection, attempt_id: str, **values: Any) -> None:
    """Write fields of an attempt: handle, positions, ended, exit_code, stop_sent, kill_sent."""
    plain = {
        name: _plain(value) if name == "positions"
        else json.dumps(value) if name == "handle" else value
        for name, value in values.items()
    }  # fmt: skip
    changes = ", ".join(f"{name} = ?" for name in plain)
    connection.execute(f"UPDATE attempt SET {changes} WHERE id = ?", [*plain.values(), attempt_id])


def setting(connection: sqlite3.Connection, name: str, default: Any) -> Any:
    """Return a stored setting of the service, or its default."""
    row = connection.execute("SELECT value FROM setting WHERE name = ?", [name]).fetchone()
    return default if row is None else json.loads(row["value"])


def set_setting(connection: sqlite3.Connection, name: str, value: Any) -> None:
    """Store a setting of the service."""
    connection.execute("INSERT OR REPLACE INTO setting VALUES (?, ?)", [name, json.dumps(value)])


def _plain(positions: Mapping[str, Position]) -> str:
    return json.dumps({name: [place.offset, place.tail] for name, place in positions.items()})
