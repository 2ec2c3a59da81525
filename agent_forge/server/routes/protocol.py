"""The older protocol: /phases/start, /phases/status, /models/create, /models/list.

The same routes are at `/` and at `/v1`; the documentation shows them once, at `/v1`.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request

from agent_forge.server.answers import (
    CreateAnswer,
    CreateRequest,
    ModelAnswer,
    StartAnswer,
    StartRequest,
    StatusAnswer,
    errors,
)
from agent_forge.server.commands import run_phases
from agent_forge.server.jobs import RUN_ALL, Job, JobState
from agent_forge.server.making import create
from agent_forge.server.reading import forwarded
from agent_forge.server.security.authentication import needs
from agent_forge.server.service import CONTROL, MODELS, Service

Once = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key", max_length=200, pattern=r"^[\x21-\x7e]+$",
        description="The same key with the same request starts one job, however often it is sent.",
    ),
]  # fmt: skip


def routers(service: Service) -> list[APIRouter]:
    """Return the routes of this process, for both places."""
    routes = []
    if CONTROL in service.parts:
        routes.append(_phases(service))
    if CONTROL in service.parts or MODELS in service.parts:
        routes.append(_models(service))
    return routes


def _phases(service: Service) -> APIRouter:
    router = APIRouter(tags=["protocol"])

    @router.post(
        "/phases/start", status_code=202, summary="Start a phase",
        dependencies=[Depends(needs("run"))], responses=errors(404, 409, 507),
    )  # fmt: skip
    def start(request: StartRequest, once: Once = None) -> StartAnswer:
        """Check names and types, queue a job, and answer at once; the job composes its settings."""
        job = service.start_job(request.phase_name, request.config, once=once)
        return StartAnswer(task_id=job.id, status=job.state)

    @router.get(
        "/phases/status", summary="How far a phase is", dependencies=[Depends(needs("read"))],
        responses=errors(404),
    )  # fmt: skip
    def status(
        task_id: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None,
    ) -> StatusAnswer:
        """Tell of one job; without a task_id of the newest active one, else of the newest."""
        job = service.supervisor.get(task_id) if task_id else service.supervisor.current()
        if job is None:
            return StatusAnswer(phase=None, progress=0.0, message="idle")
        phase, percent = _where(service, job)
        return StatusAnswer(phase=phase, progress=percent, message=job.message or str(job.state))

    return router


def _models(service: Service) -> APIRouter:
    router = APIRouter(tags=["protocol"])

    @router.post(
        "/models/create", response_model=CreateAnswer, status_code=202, summary="Create a model",
        dependencies=[Depends(needs("models"))], responses=errors(404, 409, 507),
    )  # fmt: skip
    def create_model(request: CreateRequest, shown: Request, once: Once = None) -> Any:
        """Import, merge, export, or run a phase; the id of the result is reserved at once."""
        if CONTROL not in service.parts:
            headers = {"idempotency-key": once} if once else {}
            return forwarded(
                service.control, "/v1/models/create", request.model_dump(), shown, headers
            )
        return create(service, request.type, request.params, once)

    @router.get(
        "/models/list", summary="List models", dependencies=[Depends(needs("read"))],
        responses=errors(),
    )  # fmt: skip
    def list_models() -> list[ModelAnswer]:
        """List every checkpoint that is whole; sizes are as they would be shipped."""
        return [
            ModelAnswer(
                id=one.id, name=one.name, size=one.deployable_bytes, metrics=one.metrics,
                parameters=_parameters(one.metrics), encrypted=one.encrypted,
            )
            for one in service.registry.list()
            if one.status == "ok"
        ]  # fmt: skip

    return router


def _where(service: Service, job: Job) -> tuple[str, float]:
    """Return the phase that a job is in, or has ended in, and its percent there."""
    with service.supervisor.database.read() as connection:
        row = connection.execute(
            "SELECT phase, percent FROM event WHERE job_id = ? AND source != '' "
            "ORDER BY seq DESC LIMIT 1",
            [job.id],
        ).fetchone()
    if job.command != RUN_ALL:
        return job.command, job.progress if row is None or job.ended else row["percent"]
    if row is None:  # nothing was said yet, or what was said is forgotten
        return run_phases(job)[-1 if job.state is JobState.SUCCEEDED else 0], job.progress
    return row["phase"], row["percent"]


def _parameters(metrics: dict[str, Any]) -> int | None:
    value = metrics.get("parameters")
    value = value.get("value") if isinstance(value, dict) else value
    return int(value) if isinstance(value, (int, float)) else None
