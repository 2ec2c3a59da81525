"""/v1/pipelines: runs of several phases, their start and how each of their phases stands."""

from fastapi import APIRouter, Depends

from agent_forge.core.errors import ConfigError
from agent_forge.server import queueing
from agent_forge.server.answers import (
    Identity,
    JobAnswer,
    OrderRequest,
    PhasePart,
    PipelineAnswer,
    PipelineRequest,
    errors,
)
from agent_forge.server.catalogue import phases
from agent_forge.server.client_settings import RUN_ALL
from agent_forge.server.commands import run_phases
from agent_forge.server.jobs import Job, UnknownJob
from agent_forge.server.routes.jobs import Count, Offset
from agent_forge.server.routes.protocol import Once
from agent_forge.server.security.authentication import needs
from agent_forge.server.service import Service

READ, RUN = [Depends(needs("read"))], [Depends(needs("run"))]


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(prefix="/pipelines", tags=["pipelines"])
    _add_list(routes, service)
    _add_verbs(routes, service)
    return routes


def _add_list(routes: APIRouter, service: Service) -> None:
    """Add the routes of all pipelines at once, and of one as a whole."""
    supervisor = service.supervisor

    @routes.get("", dependencies=READ, responses=errors(), summary="List pipelines")
    def list_pipelines(limit: Count = 100, offset: Offset = 0) -> list[JobAnswer]:
        """List pipelines, newest first."""
        with supervisor.database.read() as connection:
            jobs = queueing.page(connection, limit, offset, command=RUN_ALL)
        return [JobAnswer.of(job) for job in jobs]

    @routes.post(
        "", status_code=202, dependencies=RUN, responses=errors(404, 409, 507),
        summary="Start a pipeline",
    )  # fmt: skip
    def start(request: PipelineRequest, once: Once = None) -> PipelineAnswer:
        """Queue a run of all phases, or of those that are named, in their order."""
        job = service.start_job(
            RUN_ALL, request.config, extra=_overrides(request), sources=request.sources, once=once
        )
        return _shown(service, job)

    @routes.post(
        "/reorder", dependencies=RUN, responses=errors(404, 409), summary="Reorder pipelines"
    )
    def reorder(request: OrderRequest) -> list[JobAnswer]:
        """Let the named pipelines run first, in this order; returns the queue."""
        for job_id in request.ids:
            _pipeline(service, job_id)
        return [JobAnswer.of(job) for job in supervisor.reorder(request.ids)]

    @routes.get("/{job_id}", dependencies=READ, responses=errors(404), summary="One pipeline")
    def get(job_id: Identity) -> PipelineAnswer:
        """Return a pipeline and how each of its phases stands."""
        return _shown(service, _pipeline(service, job_id))


def _add_verbs(routes: APIRouter, service: Service) -> None:
    """Add the routes that change how a pipeline stands."""
    supervisor = service.supervisor

    @routes.post(
        "/{job_id}/pause", dependencies=RUN, responses=errors(404, 409), summary="Pause a pipeline"
    )
    def pause(job_id: Identity) -> PipelineAnswer:
        """Stop a pipeline where it can go on."""
        return _shown(service, supervisor.pause(_pipeline(service, job_id).id))

    @routes.post(
        "/{job_id}/resume", dependencies=RUN, responses=errors(404, 409),
        summary="Resume a pipeline",
    )  # fmt: skip
    def resume(job_id: Identity) -> PipelineAnswer:
        """Let a pipeline go on: finished phases are skipped."""
        return _shown(service, supervisor.resume(_pipeline(service, job_id).id))

    @routes.post(
        "/{job_id}/cancel", dependencies=RUN, responses=errors(404, 409),
        summary="Cancel a pipeline",
    )  # fmt: skip
    def cancel(job_id: Identity) -> PipelineAnswer:
        """Stop a pipeline for good."""
        return _shown(service, supervisor.cancel(_pipeline(service, job_id).id))


def _pipeline(service: Service, job_id: str) -> Job:
    """Return a pipeline. Raises UnknownJob for a job that runs one phase."""
    job = service.supervisor.get(job_id)
    if job.command != RUN_ALL:
        raise UnknownJob(f"job {job_id} runs {job.command} and is not a pipeline; see /v1/jobs")
    return job


def _shown(service: Service, job: Job) -> PipelineAnswer:
    return PipelineAnswer(**JobAnswer.of(job).model_dump(), phases=_parts(service, job))


def _overrides(request: PipelineRequest) -> list[str]:
    """Return the settings that a request names apart. Raises ConfigError for an unknown phase."""
    overrides = [f"experiment={request.experiment}"] if request.experiment else []
    for name in request.phases:
        if name not in phases():
            raise ConfigError(f"no phase '{name}'; known: {', '.join(phases())}")
    return [*overrides, f"phases=[{','.join(request.phases)}]"] if request.phases else overrides


def _parts(service: Service, job: Job) -> list[PhasePart]:
    """Return how each phase of a run stands, from its events and its outcome."""
    with service.supervisor.database.read() as connection:
        rows = connection.execute(
            "SELECT phase, max(percent) AS percent, max(seq) AS seq FROM event "
            "WHERE job_id = ? AND source != '' GROUP BY phase",
            [job.id],
        ).fetchall()
    seen = {row["phase"]: row for row in rows}
    newest = max(seen, key=lambda name: seen[name]["seq"], default="")
    ends = {one["phase"]: one["status"] for one in job.results.get("phases", [])}
    parts = []
    for name in run_phases(job):
        percent = float(seen[name]["percent"]) if name in seen else 0.0
        state = ends.get(name) or ("done" if percent >= 100 else "pending")
        if name not in ends and name == newest and percent < 100:
            state = str(job.state)
        parts.append(PhasePart(name=name, state=state, percent=percent))
    return parts
