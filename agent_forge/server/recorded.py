"""What the phases of a job have written down: tables, samples and plots, and a past run's events.

Reads `outcome.json` and `events.jsonl` in the record of a job; writes nothing. The database holds
what the service has seen itself. A run of a terminal that had ended before the service found it is
only in its files, so its curves come from there.
"""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from agent_forge.core.events import Event
from agent_forge.server import records
from agent_forge.server.checkpoints import Registry
from agent_forge.server.jobs import Job
from agent_forge.server.live.messages import message_of
from agent_forge.server.series import NOT_NUMBERS
from agent_forge.server.store import StoredEvent

MOST_POINTS = 4000  # progress events of a past run; more are thinned to every second, third, ...


class PhaseReport(BaseModel):
    """What one phase has written: title -> rows, conversations or texts, title -> points."""

    phase: str
    status: str
    summary: str
    baseline: str
    tables: dict[str, list[dict[str, Any]]]
    samples: list[str]
    plots: dict[str, list[tuple[float, float]]]


def phase_reports(job: Job, registry: Registry) -> list[PhaseReport]:
    """Return the report of each phase of a job that has ended, without paths."""
    reports = []
    for outcome in records.outcomes_of(job):
        values = {
            "summary": "", "baseline": "", "tables": {}, "samples": [], "plots": {},
            **outcome.report,
        }  # fmt: skip
        text = records.without_paths(json.dumps(values), registry)
        plain = json.loads(text, parse_constant=lambda name: str(float(name)))
        reports.append(PhaseReport(phase=outcome.phase, status=outcome.status, **_known(plain)))
    return reports


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in PhaseReport.model_fields if name in values}


def past_messages(job: Job, registry: Registry) -> list[dict[str, Any]]:
    """Return the messages that the files of a job's events hold, numbered from 1."""
    events = list(_events(job))
    points = sum(event.kind == "progress" for event in events)
    every = -(-points // MOST_POINTS) or 1
    return [
        message_of(_stored(job, number, event, registry), job.command).content
        for number, event in enumerate(_thinned(events, every), start=1)
    ]


def _events(job: Job) -> Iterator[Event]:
    files = records.EventFiles(job, {})
    before = None
    while files.positions != before:
        before = files.positions
        yield from (event for _, event in files.read())


def _thinned(events: list[Event], every: int) -> Iterator[Event]:
    """Yield all events but for points: each `every`-th, the last of a stage, and what has a gap."""
    for number, event in enumerate(events):
        is_last = event.step >= event.total
        has_gap = any(
            value in NOT_NUMBERS for value in event.metrics.values() if type(value) is str
        )
        if event.kind != "progress" or is_last or has_gap or number % every == 0:
            yield event


def _stored(job: Job, number: int, event: Event, registry: Registry) -> StoredEvent:
    return StoredEvent(
        seq=number, job_id=job.id, attempt=1, time=event.time, kind=event.kind, phase=event.phase,
        stage=event.stage, step=event.step, total=event.total, percent=100.0, progress=100.0,
        message=records.without_paths(event.message, registry),
        metrics=records.plain_metrics(event.metrics, registry),
    )  # fmt: skip
