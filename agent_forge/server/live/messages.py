"""Turn stored events into the messages of the older protocol, with a number and a job on each.

    progress {phase, percent}     complete {phase, results}     error {phase, message}

and, beside them, state, start, message, warning, metrics, artefact and gate. `complete` and `error`
are said once per job, when the server knows its end; a pipeline says `complete` for each of its
phases too. A job that its gate rejected is complete, with results.status "rejected".
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent_forge.server.client_settings import RUN_ALL
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.store import STATE, StoredEvent

ENDED_WELL = (JobState.SUCCEEDED, JobState.REJECTED)
ENDED_BADLY = (JobState.FAILED, JobState.INTERRUPTED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True)
class Message:
    """One message as clients get it. text: `content` as JSON."""

    seq: int
    task_id: str
    type: str
    content: dict[str, Any]
    text: str


def message_of(event: StoredEvent, command: str) -> Message:
    """Return the message of an event. command: what its job runs."""
    content: dict[str, Any] = {
        "type": event.kind, "seq": event.seq, "task_id": event.job_id, "phase": event.phase,
        "attempt": event.attempt, "time": event.time,
    }  # fmt: skip
    if event.kind == STATE:
        content |= _of_state(event)
    elif event.kind == "progress":
        content |= {
            "percent": event.percent, "progress": event.progress, "stage": event.stage,
            "step": event.step, "total": event.total, "metrics": event.metrics,
        }  # fmt: skip
    elif event.kind == "complete" and command == RUN_ALL:
        content["results"] = {**event.metrics, "summary": event.message}
    elif event.kind in ("complete", "error"):
        # The job's end follows with what came of it; this is the phase's own last line.
        level = "error" if event.kind == "error" else "info"
        content |= {"type": "message", "level": level, "message": event.message}
    else:
        content |= {"message": event.message, "stage": event.stage, "metrics": event.metrics}
    return Message(event.seq, event.job_id, content["type"], content, json.dumps(content))


def _of_state(event: StoredEvent) -> Mapping[str, Any]:
    state = JobState(event.metrics["state"])
    results = event.metrics.get("results") or {}
    if state in ENDED_WELL:
        return {"type": "complete", "results": {**results, "status": state}, "state": state}
    if state in ENDED_BADLY:
        return {
            "type": "error", "message": event.message or f"the job is {state}", "code": state,
            "exit_code": event.metrics.get("error_code"), "state": state,
        }  # fmt: skip
    return {"state": state, "message": event.message, "progress": event.progress}


def gap(after: int, oldest: int, newest: int) -> str:
    """Return the message to a client that has missed events which are not kept any more."""
    content = {"type": "gap", "seq": after, "task_id": None, "after": after, "oldest": oldest,
               "newest": newest}  # fmt: skip
    return json.dumps(content)


def snapshot(seq: int, newest: int, jobs: list[Job]) -> str:
    """Return how all jobs are, for a client that has missed something.

    seq: go on from here. newest: the number of the last event that the jobs' states include.
    """
    listed = [
        {
            "task_id": job.id, "phase": job.command, "state": job.state, "progress": job.progress,
            "message": job.message, "results": job.results,
        }
        for job in jobs
    ]  # fmt: skip
    content = {"type": "snapshot", "seq": seq, "task_id": None, "as_of": newest, "jobs": listed}
    return json.dumps(content)
