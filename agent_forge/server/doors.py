"""The doors that other rooms of the server bring: pages, chat, MCP and the audit log.

Each function opens one of them for a process that serves its part; a room that is not there, or
whose extra is not installed, leaves its door out.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil

from agent_forge.server.app import Door
from agent_forge.server.service import CHAT, CONTROL, Service

MODEL_MEMORY_SHARE = 0.5  # the machine's memory that loaded models may take by default


def open_doors(service: Service) -> list[Door]:
    """Return the doors of this process."""
    return [*_pages(service), *_chat(service)]


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
