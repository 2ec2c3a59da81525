"""An OpenAI-compatible chat: `/v1/chat/completions` and `/v1/models`, each model in its own process.

    routes.py    the routes; `router(models, pool)` is what an app mounts
    requests.py  what a client may send: every field is used, or refused by its name
    replies.py   events of an agent as OpenAI's objects and chunks
    errors.py    errors in OpenAI's form
    pool.py      which models are loaded: least recently used ones leave for memory
    process.py   one model's process, seen from the server
    worker.py    the same process, seen from inside

`MODEL:agent` as a model's name runs the checkpoint's own tools here; `MODEL` alone returns calls of
the client's tools. The names below resolve on first use, because the routes need FastAPI.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.server.openai.models import NamedDirectories, RegisteredModels, ServedModels
    from agent_forge.server.openai.pool import ModelPool
    from agent_forge.server.openai.routes import router

__all__ = ["ModelPool", "NamedDirectories", "RegisteredModels", "ServedModels", "router"]

_HOMES = {
    "ModelPool": "pool",
    "NamedDirectories": "models",
    "RegisteredModels": "models",
    "ServedModels": "models",
    "router": "routes",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
