"""Jobs and events as a process sees them that does not own the database: it reads and no more.

In a split service the doors for updates and models read the file that the control part writes, and
forward to it what changes something, with the key that the client has shown.
"""

import http.client
import json
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from agent_forge.server import jobs, queueing, store
from agent_forge.server.checkpoints import Registry
from agent_forge.server.database import Readers
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.store import StoredEvent

FORWARD_SECONDS = 60.0
Events = list[StoredEvent]
Jobs = list[Job]


class JobReader:
    """The reading half of a supervisor."""

    def __init__(self, database: Readers, registry: Registry) -> None:
        self.database, self.registry = database, registry

    def get(self, job_id: str) -> Job:
        """Return a job. Raises UnknownJob."""
        with self.database.read() as connection:
            return jobs.load(connection, job_id)

    def list(self, state: JobState | None = None) -> Jobs:
        """Return all jobs, or the jobs of one state, newest first."""
        with self.database.read() as connection:
            return queueing.listed(connection, state)

    def events(self, after: int, limit: int = 1000, job_id: str | None = None) -> Events:
        """Return up to `limit` events behind the number `after`, oldest first."""
        with self.database.read() as connection:
            return store.events(connection, after, limit, job_id)

    def oldest_seq(self) -> int:
        """Return the number of the oldest event that is kept."""
        with self.database.read() as connection:
            return queueing.oldest_seq(connection)

    def last_seq(self) -> int:
        """Return the number of the newest event there has ever been."""
        with self.database.read() as connection:
            return queueing.last_seq(connection)


Address = tuple[str, int]


def forward(
    control: Address,
    path: str,
    body: Any,
    authorization: str,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """Send a request to the control part on this machine; return its status and its JSON.

    control: its host and port. authorization: the line that the client has shown; the control part checks it again.
    """
    connection = http.client.HTTPConnection(*control, timeout=FORWARD_SECONDS)
    lines = {"content-type": "application/json", "authorization": authorization, **(headers or {})}
    try:
        text = None if body is None else json.dumps(body)
        connection.request("POST", path, text, lines)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, ValueError) as error:
        from agent_forge.server.security.asgi import error_body

        where = f"on port {control[1]}"
        return 503, error_body(503, f"the control part does not answer {where} ({error})")
    finally:
        connection.close()


def forwarded(
    control: Address, path: str, body: Any, shown: Request, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Send a client's request on to the control part, and return its answer as it is."""
    status, content = forward(control, path, body, shown.headers["authorization"], headers)
    return JSONResponse(content, status)


def wait_for_database(path: Path, seconds: float = 30.0) -> None:
    """Wait until the control part has made its database. Raises StorageError when it does not."""
    import time

    from agent_forge.core.errors import StorageError

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and path.stat().st_size:
            return
        time.sleep(0.05)
    raise StorageError(f"there is no database at {path}; start the control part first")
