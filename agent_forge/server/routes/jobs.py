"""/v1/jobs and /v1/queue: every job, its events, curves and log; pause, resume, cancel, reorder."""

from dataclasses import fields
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel

from agent_forge.server import queueing, store
from agent_forge.server.answers import (
    Identity,
    JobAnswer,
    OrderRequest,
    QueueAnswer,
    QueueRequest,
    StartRequest,
    errors,
)
from agent_forge.server.jobs import JobState
from agent_forge.server.live.messages import message_of
from agent_forge.server.recorded import PhaseReport, past_messages, phase_reports
from agent_forge.server.routes.protocol import Once
from agent_forge.server.security.authentication import needs
from agent_forge.server.series import LEAST_POINTS, Point, Series, job_series
from agent_forge.server.service import Service

Count = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0, le=2**62)]
After = Annotated[int, Query(ge=0, le=2**62, description="The number of the last known event.")]
COLUMNS = tuple(field.name for field in fields(Point))
READ, RUN = [Depends(needs("read"))], [Depends(needs("run"))]


class EventsAnswer(BaseModel):
    """Messages as on the WebSocket, oldest first, and the number to go on from."""

    after: int
    events: list[dict[str, Any]]


class SeriesPart(BaseModel):
    """One metric of one phase, its points in columns, oldest first; a value of null is a gap.

    total: how many points there were before they were thinned.
    """

    phase: str
    name: str
    total: int
    seq: list[int]
    time: list[float]
    attempt: list[int]
    stage: list[str]
    step: list[int]
    value: list[float | None]

    @classmethod
    def of(cls, series: Series) -> "SeriesPart":
        """Return a series as clients get it."""
        columns = {name: [getattr(point, name) for point in series.points] for name in COLUMNS}
        return cls(phase=series.phase, name=series.name, total=series.total, **columns)


class SeriesAnswer(BaseModel):
    """Curves of a job, and the number to go on from."""

    after: int
    series: list[SeriesPart]


class RecordAnswer(BaseModel):
    """What a job's phases have written; events: messages as on the WebSocket, of a past run."""

    phases: list[PhaseReport]
    events: list[dict[str, Any]]


class LogAnswer(BaseModel):
    """The end of what a job wrote to standard error."""

    text: str


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/jobs", tags=["jobs"])
    _add_list(routes, service)
    _add_verbs(routes, service)
    _add_records(routes, service)
    return routes


def _add_list(routes: APIRouter, service: Service) -> None:
    """Add the routes of all jobs at once, and of one as a whole."""
    supervisor = service.supervisor

    @routes.get("", dependencies=READ, responses=errors(), summary="List jobs")
    def list_jobs(
        state: JobState | None = None, limit: Count = 100, offset: Offset = 0
    ) -> list[JobAnswer]:
        """List jobs, newest first; queued ones in the order of the queue."""
        with supervisor.database.read() as connection:
            jobs = queueing.page(connection, limit, offset, state)
        return [JobAnswer.of(job) for job in jobs]

    @routes.post(
        "", status_code=202, dependencies=RUN, responses=errors(404, 409, 507),
        summary="Start a job",
    )  # fmt: skip
    def start(request: StartRequest, once: Once = None) -> JobAnswer:
        """Queue a phase or run-all; as /phases/start, with the whole job as answer."""
        return JobAnswer.of(service.start_job(request.phase_name, request.config, once=once))

    @routes.post(
        "/reorder", dependencies=RUN, responses=errors(404, 409), summary="Reorder the queue"
    )
    def reorder(request: OrderRequest) -> list[JobAnswer]:
        """Let the named jobs run first, in this order; returns the queue."""
        return [JobAnswer.of(job) for job in supervisor.reorder(request.ids)]

    @routes.get("/{job_id}", dependencies=READ, responses=errors(404), summary="One job")
    def get(job_id: Identity) -> JobAnswer:
        """Return a job."""
        return JobAnswer.of(supervisor.get(job_id))


def _add_verbs(routes: APIRouter, service: Service) -> None:
    """Add the routes that change how a job stands."""
    supervisor = service.supervisor

    @routes.post(
        "/{job_id}/pause", dependencies=RUN, responses=errors(404, 409), summary="Pause a job"
    )
    def pause(job_id: Identity) -> JobAnswer:
        """Stop a job where it can go on."""
        return JobAnswer.of(supervisor.pause(job_id))

    @routes.post(
        "/{job_id}/resume", dependencies=RUN, responses=errors(404, 409), summary="Resume a job"
    )
    def resume(job_id: Identity) -> JobAnswer:
        """Queue a paused, interrupted or failed job again."""
        return JobAnswer.of(supervisor.resume(job_id))

    @routes.post(
        "/{job_id}/cancel", dependencies=RUN, responses=errors(404, 409), summary="Cancel a job"
    )
    def cancel(job_id: Identity) -> JobAnswer:
        """Stop a job for good."""
        return JobAnswer.of(supervisor.cancel(job_id))


def _add_records(routes: APIRouter, service: Service) -> None:
    """Add the routes of what a job has said: events, curves and its log."""
    supervisor = service.supervisor

    @routes.get(
        "/{job_id}/events", dependencies=READ, responses=errors(404), summary="Events of a job"
    )
    def events(
        job_id: Identity, after: After = 0, limit: Count = 500, points: bool = True
    ) -> EventsAnswer:
        """Return a block of a job's events; go on with the number that comes with it.

        points=false leaves out the points of curves, which /series has thinned, but for the
        newest of each phase.
        """
        command = supervisor.get(job_id).command
        with supervisor.database.read() as connection:
            rows = store.events(connection, after, limit, job_id, points=points)
        messages = [message_of(row, command).content for row in rows]
        return EventsAnswer(after=rows[-1].seq if rows else after, events=messages)

    @routes.get(
        "/{job_id}/series", dependencies=READ, responses=errors(404), summary="Curves of a job"
    )
    def series(
        job_id: Identity,
        after: After = 0,
        points: Annotated[int, Query(ge=LEAST_POINTS, le=10_000)] = 500,
    ) -> SeriesAnswer:
        """Return each metric of a job behind a number, thinned to `points`; null is a gap."""
        supervisor.get(job_id)
        with supervisor.database.read() as connection:
            last, curves = job_series(connection, job_id, after, points)
        return SeriesAnswer(after=last, series=[SeriesPart.of(curve) for curve in curves])

    @routes.get(
        "/{job_id}/record", dependencies=READ, responses=errors(404), summary="Reports of a job"
    )
    def record(job_id: Identity, events: bool = False) -> RecordAnswer:
        """Return the tables, samples and plots of each phase that has ended.

        events: also what the run's own files hold, thinned, for a run of a terminal that had ended
        before the service found it; its events are not on /events.
        """
        job, registry = supervisor.get(job_id), supervisor.registry
        return RecordAnswer(
            phases=phase_reports(job, registry),
            events=past_messages(job, registry) if events else [],
        )

    @routes.get("/{job_id}/log", dependencies=READ, responses=errors(404), summary="Log of a job")
    def log(job_id: Identity, lines: Count = 50) -> LogAnswer:
        """Return the last lines of a job's standard error."""
        return LogAnswer(text=supervisor.tail(job_id, lines))


def queue_router(service: Service) -> APIRouter:
    """Return the routes of the queue as a whole."""
    routes = APIRouter(prefix="/queue", tags=["jobs"])
    supervisor = service.supervisor

    def shown() -> QueueAnswer:
        state = supervisor.queue()
        return QueueAnswer(
            paused=state.paused, continue_on_error=state.continue_on_error,
            jobs=[JobAnswer.of(job) for job in supervisor.list(JobState.QUEUED)],
        )  # fmt: skip

    @routes.get("", dependencies=READ, responses=errors(), summary="The queue")
    def get() -> QueueAnswer:
        """Return the queue."""
        return shown()

    @routes.put("", dependencies=RUN, responses=errors(507), summary="Change the queue")
    def change(request: QueueRequest) -> QueueAnswer:
        """Change what is given, and return the queue."""
        supervisor.set_queue(paused=request.paused, continue_on_error=request.continue_on_error)
        return shown()

    return routes
