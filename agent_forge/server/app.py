"""Build the application of one server process: routers, mounted applications, the wall around all.

Other rooms of the server bring their doors as `Door`s: a router or an ASGI application, the scope
that its clients need, and what it must start and stop with the server.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from agent_forge import __version__
from agent_forge.server import failures
from agent_forge.server.answers import ServiceAnswer, errors
from agent_forge.server.routes import checkpoints, exports, jobs, live, phases, pipelines, protocol
from agent_forge.server.security.authentication import needs
from agent_forge.server.security.wall import Wall
from agent_forge.server.service import CONTROL, MODELS, UPDATES, Service

PUBLIC = ("/healthz", "/openapi.json")
Lifespan = Callable[[], AbstractAsyncContextManager[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """A part of the server that another room built.

    router: included at `prefix`, its routes need the scope, or none where that is "". app: an ASGI
    application mounted at `prefix`. routes: of an ASGI application that names its own paths, at
    `prefix` and below. lifespan: entered when the server starts, left when it stops. public: paths
    that need no key.
    """

    prefix: str = ""
    scope: str = "read"
    router: APIRouter | None = None
    routes: Sequence[BaseRoute] = ()
    app: ASGIApp | None = None
    lifespan: Lifespan | None = None
    public: tuple[str, ...] = ()


def create_app(service: Service, doors: Sequence[Door] = ()) -> FastAPI:
    """Return the application without its wall."""
    app = FastAPI(
        title="Agent Forge", version=__version__, docs_url=None, redoc_url=None,
        lifespan=_lifespan(service, doors), redirect_slashes=False,
        description="Jobs, live updates, models and checkpoints of one forge. The routes of the "
        "older protocol are at / as well as at /v1.",
        servers=[{"url": "/"}],
    )  # fmt: skip
    failures.add_to(app)
    _add_own(app, service)
    for router in protocol.routers(service):
        app.include_router(router, prefix="/v1")
        app.include_router(router, include_in_schema=False)
    for router in _routers(service):
        app.include_router(router, prefix="/v1")
    if UPDATES in service.parts:
        app.include_router(live.router(service), prefix="/v1")
        app.include_router(live.socket_router(service), prefix="/v1")
        app.include_router(live.socket_router(service))
    for door in doors:
        if door.router is not None:
            needed = [Depends(needs(door.scope))] if door.scope else []
            app.include_router(door.router, prefix=door.prefix, dependencies=needed)
        app.router.routes.extend(door.routes)
        if door.app is not None:
            app.mount(door.prefix or "/", door.app)
    return app


def protected(app: ASGIApp, wall: Wall, doors: Sequence[Door] = ()) -> ASGIApp:
    """Return the application behind its wall, which knows the doors."""
    wall.public = (*wall.public, *PUBLIC, *(path for door in doors for path in door.public))
    guarded = [door for door in doors if door.prefix and (door.app is not None or door.routes)]
    wall.mounted = {**wall.mounted, **{door.prefix: door.scope for door in guarded}}
    return wall.around(app)


def _routers(service: Service) -> list[APIRouter]:
    routers = []
    if CONTROL in service.parts:
        routers += [
            jobs.router(service), jobs.queue_router(service), pipelines.router(service),
            phases.router(service),
        ]  # fmt: skip
    if CONTROL in service.parts or MODELS in service.parts:
        routers += [checkpoints.router(service), exports.router(service)]
    return routers


def _add_own(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["service"], summary="Alive")
    async def health() -> dict[str, str]:
        """Answer while the server runs; needs no key."""
        return {"status": "ok"}

    @app.get(
        "/v1/service", tags=["service"], summary="What this server is", responses=errors(),
        dependencies=[Depends(needs("read"))],
    )  # fmt: skip
    async def about() -> ServiceAnswer:
        """Return the version, the parts that this port serves, and the number of the last event."""
        return ServiceAnswer(
            version=__version__, parts=list(service.parts), last_seq=service.hub.last_seq()
        )


def _lifespan(service: Service, doors: Sequence[Door]) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await service.hub.start()
            stack.push_async_callback(service.hub.close)
            if CONTROL in service.parts:
                await service.composer.start()
                stack.push_async_callback(service.composer.close)
            for door in doors:
                if door.lifespan is not None:
                    await stack.enter_async_context(door.lifespan())
            yield

    return running
