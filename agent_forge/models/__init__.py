"""Models: Cognate, thought wrapper, ternary and compressed linears; load, save, generate, import.

The names below are resolved on first use, so that importing this package does not need torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.models.generation import generate, stream
    from agent_forge.models.importing import import_model
    from agent_forge.models.sampling import Decoding
    from agent_forge.models.storage import deployable_bytes, load, load_tokenizer, save

__all__ = [
    "Decoding",
    "deployable_bytes",
    "generate",
    "import_model",
    "load",
    "load_tokenizer",
    "save",
    "stream",
]

_HOMES = {
    "Decoding": "sampling",
    "deployable_bytes": "storage",
    "generate": "generation",
    "import_model": "importing",
    "load": "storage",
    "load_tokenizer": "storage",
    "save": "storage",
    "stream": "generation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # transformers comes first, so that our model types are registered before any of them loads.
    importlib.import_module("transformers")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
