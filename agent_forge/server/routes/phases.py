"""/v1/phases and /v1/data: what can be run, on which settings, and whether a config composes."""

from typing import Any

from fastapi import APIRouter, Depends, HTTPException

from agent_forge.core.errors import ForgeError
from agent_forge.server import forms
from agent_forge.server.answers import Identity, StartRequest, ValidateAnswer, errors
from agent_forge.server.catalogue import phases
from agent_forge.server.client_settings import ASSIGNED, RUN_ALL, read_config
from agent_forge.server.failures import status_of
from agent_forge.server.security.authentication import needs
from agent_forge.server.service import Service

READ = [Depends(needs("read"))]
SERVER_ERROR = 500


def router(service: Service) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["phases"])

    @routes.get("/phases", dependencies=READ, responses=errors(), summary="List phases")
    def list_phases() -> list[dict[str, Any]]:
        """List the phases in the order in which they are meant to run."""
        return [forms.summary(phase) for phase in phases().values()]

    @routes.get(
        "/phases/{name}/schema", dependencies=READ, responses=errors(404), summary="Settings"
    )
    def schema(name: Identity) -> dict[str, Any]:
        """Return the settings of a phase as JSON Schema, with defaults, units and explanations."""
        return forms.schema(name)

    @routes.post(
        "/phases/validate", dependencies=READ, responses=errors(404, 409, 507),
        summary="Compose a config",
    )  # fmt: skip
    async def validate(request: StartRequest) -> ValidateAnswer:
        """Compose a config as its job would, check its inputs, and estimate time, memory, disk."""
        try:
            return await _validated(service, request)
        except TimeoutError:
            raise HTTPException(503, "composing took too long; send it again") from None
        except ForgeError as error:
            if status_of(error) >= SERVER_ERROR and status_of(error) != 507:
                raise
            return ValidateAnswer(valid=False, error=hide(service, str(error)))

    @routes.get("/data", dependencies=READ, responses=errors(), summary="List data sources")
    def list_data() -> list[dict[str, Any]]:
        """List what data.text and data.rows of a config may name."""
        return service.data.listed()

    return routes


async def _validated(service: Service, request: StartRequest) -> ValidateAnswer:
    from fastapi.concurrency import run_in_threadpool

    name = request.phase_name
    is_run = name.replace("_", "-") == RUN_ALL
    settings = read_config(name, request.config)
    ids, hidden = await run_in_threadpool(service.resolve, settings)
    paths = [await run_in_threadpool(service.registry.path_of, one) for one in ids]
    overrides = [*settings.overrides, *hidden, *_places(service, name, is_run)]
    if paths:
        from agent_forge.config.overrides import quote

        key = "cognate.sources" if is_run else "sources"
        overrides.append(f"{key}=[{','.join(quote(str(path)) for path in paths)}]")
    composed = await service.composer.compose(name, overrides, estimate=True)
    config = {k: without_assigned(v) for k, v in composed.config.items()} if is_run else (
        without_assigned(composed.config)
    )  # fmt: skip
    estimates = [
        {k: v for k, v in one.items() if k not in ("sources", "out")} for one in composed.estimates
    ]
    return ValidateAnswer(valid=True, config=config, estimates=estimates)


def _places(service: Service, name: str, is_run: bool) -> list[str]:
    """Return the settings that the server gives itself, for a place where nothing is written."""
    from agent_forge.config.overrides import quote

    place = service.state / "jobs" / "validate"
    where = f"run_dir={quote(str(place))}" if is_run else f"out={quote(str(place / name))}"
    return [where, f"data.cache={quote(str(service.state / 'cache'))}"]


def without_assigned(config: dict[str, Any]) -> dict[str, Any]:
    """Return a phase's settings without those that hold paths of the server."""
    hidden = {end.partition(".")[0]: end for end in ASSIGNED if "." not in end}
    shown = {key: value for key, value in config.items() if key not in (*hidden, "sources")}
    data = {key: value for key, value in shown.get("data", {}).items()
            if key not in ("cache", "text", "rows")}  # fmt: skip
    gate = {key: value for key, value in shown.get("gate", {}).items() if key != "base"}
    return {**shown, "data": data, "gate": gate}


def hide(service: Service, text: str) -> str:
    """Return text without the server's directories."""
    from agent_forge.server.records import without_paths

    return without_paths(text, service.registry)
