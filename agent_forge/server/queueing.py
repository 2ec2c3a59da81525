"""The queue: which jobs wait, in which order, and what is asked of all of them at once.

All functions take the connection of a read or of a change; `Supervisor` is their only caller.
"""

import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from agent_forge.core.errors import ConfigError
from agent_forge.server import jobs, store
from agent_forge.server.jobs import ACTIVE, Job, JobState, WrongState

WHOLE_FROM = "events.whole_from"
PAUSED, CONTINUE = "queue.paused", "queue.continue_on_error"


@dataclass(slots=True, kw_only=True)
class QueueState:
    """paused: no waiting job starts. continue_on_error: a failed job does not pause the queue.
    waiting: ids in order. active: ids of jobs with a process.
    """

    paused: bool
    continue_on_error: bool
    waiting: list[str]
    active: list[str]


def add(connection: sqlite3.Connection, job: Job, idempotency_key: str | None) -> Job:
    """Add a job behind the others, or return the one that the key has brought before.

    Raises ConfigError when the key has brought another request.
    """
    digest = _digest(job)
    if idempotency_key is not None:
        row = connection.execute(
            "SELECT job_id, digest FROM idempotency WHERE key = ?", [idempotency_key]
        ).fetchone()
        if row is not None and row["digest"] != digest:
            raise ConfigError(
                f"the idempotency key '{idempotency_key}' was used for another request "
                f"(job {row['job_id']}); take a new key"
            )
        if row is not None:
            return jobs.load(connection, row["job_id"])
    job.position = _last_position(connection) + 1
    jobs.insert(connection, job)
    store.note_state(connection, job, JobState.QUEUED)
    if idempotency_key is not None:
        connection.execute(
            "INSERT INTO idempotency VALUES (?, ?, ?, ?)",
            [idempotency_key, job.id, digest, time.time()],
        )
    return job


def _digest(job: Job) -> str:
    request = [job.command, job.overrides, job.sources, job.hidden_overrides]
    return hashlib.sha256(json.dumps(request).encode()).hexdigest()


def _last_position(connection: sqlite3.Connection) -> float:
    return float(connection.execute("SELECT coalesce(max(position), 0) FROM job").fetchone()[0])


def to_back(connection: sqlite3.Connection, job: Job) -> None:
    """Give a job the last place."""
    job.position = _last_position(connection) + 1
    jobs.update(connection, job, "position")


def waiting(connection: sqlite3.Connection) -> list[Job]:
    """Return the queue, the next job first."""
    return listed(connection, JobState.QUEUED)


def active(connection: sqlite3.Connection) -> list[Job]:
    """Return the jobs with a process, the oldest first."""
    marks = ", ".join("?" * len(ACTIVE))
    rows = connection.execute(
        f"SELECT * FROM job WHERE state IN ({marks}) ORDER BY created", list(ACTIVE)
    )
    return [jobs.from_row(row) for row in rows]


def listed(connection: sqlite3.Connection, state: JobState | None) -> list[Job]:
    """Return all jobs or the jobs of one state, newest first; or the queue in its order."""
    if state is None:
        rows = connection.execute("SELECT * FROM job ORDER BY created DESC, id")
    elif state is JobState.QUEUED:
        rows = connection.execute("SELECT * FROM job WHERE state = ? ORDER BY position", [state])
    else:
        rows = connection.execute(
            "SELECT * FROM job WHERE state = ? ORDER BY created DESC, id", [state]
        )
    return [jobs.from_row(row) for row in rows]


def page(
    connection: sqlite3.Connection,
    limit: int,
    offset: int,
    state: JobState | None = None,
    command: str | None = None,
) -> list[Job]:
    """Return a part of the list of jobs, in the order of `listed`: a service keeps thousands."""
    order = "position" if state is JobState.QUEUED else "created DESC, id"
    rows = connection.execute(
        "SELECT * FROM job WHERE state = coalesce(?, state) AND command = coalesce(?, command) "
        f"ORDER BY {order} LIMIT ? OFFSET ?",
        [state, command, limit, offset],
    )
    return [jobs.from_row(row) for row in rows]


def current(connection: sqlite3.Connection) -> Job | None:
    """Return the newest job with a process, else the newest of all."""
    running = active(connection)
    if running:
        return max(running, key=lambda job: job.started or job.created)
    row = connection.execute("SELECT * FROM job ORDER BY created DESC, id LIMIT 1").fetchone()
    return None if row is None else jobs.from_row(row)


def reorder(connection: sqlite3.Connection, ids: Sequence[str]) -> None:
    """Put the named jobs before the others. Raises UnknownJob, WrongState."""
    if len(set(ids)) != len(ids):
        raise ConfigError("the order names a job twice")
    chosen = [jobs.load(connection, job_id) for job_id in ids]
    for job in chosen:
        if job.state is not JobState.QUEUED:
            raise WrongState(f"job {job.id} is {job.state}: only jobs that wait have an order")
    others = [job for job in waiting(connection) if job.id not in ids]
    for position, job in enumerate([*chosen, *others], start=1):
        job.position = float(position)
        jobs.update(connection, job, "position")


def state(connection: sqlite3.Connection) -> QueueState:
    """Return the queue as a whole."""
    return QueueState(
        paused=is_paused(connection),
        continue_on_error=store.setting(connection, CONTINUE, True),
        waiting=[job.id for job in waiting(connection)],
        active=[job.id for job in active(connection)],
    )


def is_paused(connection: sqlite3.Connection) -> bool:
    """Return whether no waiting job starts."""
    return bool(store.setting(connection, PAUSED, False))


def first(connection: sqlite3.Connection) -> Job | None:
    """Return the next job of the queue."""
    row = connection.execute(
        "SELECT * FROM job WHERE state = ? ORDER BY position LIMIT 1", [JobState.QUEUED]
    ).fetchone()
    return None if row is None else jobs.from_row(row)


def note_failure(connection: sqlite3.Connection) -> None:
    """Pause the queue after a failed job, unless it is to go on."""
    if not store.setting(connection, CONTINUE, True):
        set_state(connection, True, None)


def set_state(
    connection: sqlite3.Connection, paused: bool | None, continue_on_error: bool | None
) -> None:
    """Change what is not None."""
    if paused is not None:
        store.set_setting(connection, PAUSED, paused)
    if continue_on_error is not None:
        store.set_setting(connection, CONTINUE, continue_on_error)


def oldest_seq(connection: sqlite3.Connection) -> int:
    """Return the number from which on no event is missing."""
    whole_from = int(store.setting(connection, WHOLE_FROM, 1))
    oldest = connection.execute("SELECT min(seq) FROM event").fetchone()[0]
    return max(whole_from, oldest or 0)


def last_seq(connection: sqlite3.Connection) -> int:
    """Return the number of the newest event that there has ever been; 0 before the first."""
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return int(row[0]) if row is not None else 0
