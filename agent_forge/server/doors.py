"""The doors that other rooms of the server bring: pages, chat and MCP.

Each function opens one of them for a process that serves its part; a room that is not there, or
whose extra is not installed, leaves its door out.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from agent_forge.server.app import Door
from agent_forge.server.service import CHAT, CONTROL, MODELS, Service

MODEL_MEMORY_SHARE = 0.5  # the machine's memory that loaded models may take by default


def open_doors(service: Service) -> list[Door]:
    """Return the doors of this process."""
    return [*_pages(service), *_chat(service), *_mcp(service)]


def _pages(service: Service) -> list[Door]:
    """Return the dashboard's door, which is where jobs are started."""
    from agent_forge.server import pages

    if CONTROL not in service.parts:
        return []
    return [Door(router=pages.router(), scope="", public=pages.PUBLIC)]


def _chat(service: Service) -> list[Door]:
    """Return the OpenAI-compatible chat over the checkpoints that are whole."""
    if CHAT not in service.parts:
        return []
    from agent_forge.server.openai import ModelPool, RegisteredModels, router

    limit = service.model_memory_bytes
    if not limit:
        limit = int(psutil.virtual_memory().total * MODEL_MEMORY_SHARE)
    pool = ModelPool(memory_bytes=limit)

    @asynccontextmanager
    async def running() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.to_thread(pool.close)

    models = RegisteredModels(service.registry)
    return [Door(scope="chat", router=router(models, pool), lifespan=running)]


def _mcp(service: Service) -> list[Door]:
    """Return MCP over HTTP at /mcp, where the operator has named rooms for it.

    Raises ConfigError for a room that does not exist or lacks its part, and where mcp is missing.
    """
    if MODELS not in service.parts or not service.mcp_rooms:
        return []
    from agent_forge.server.mcp.http import PATH, SCOPE, application
    from agent_forge.server.mcp.offer import Offer

    folder = service.state / "mcp"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    offer = Offer(
        rooms=service.mcp_rooms, models=service.registry.roots, repository=service.mcp_repository,
        memory=str(folder / "memory.sqlite"), state=folder,
    )  # fmt: skip
    names = [f"[{name}]" if ":" in name else name for name in service.names]
    hosts = [host for name in names for host in (name, f"{name}:*")]
    origins = [*service.origins, *(f"http://{host}" for host in hosts)]
    # The wall has checked the key and its scope.
    served = application(offer, None, hosts=hosts, origins=origins)
    return [Door(prefix=PATH, scope=SCOPE, routes=served.app.routes, lifespan=served.lifespan)]
