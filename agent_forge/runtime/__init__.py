"""Run Llama-family models from their codes, in one native call per step, without float32 copies.

`load(path)` reads a checkpoint directory (compressed, ternary or float) or a packed file into a
`PackedModel`; `causal.open_model` picks between that and torch for the agent. Names resolve on
first use. Only ternary latents and codecs without a packed layout need torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.runtime.loading import load
    from agent_forge.runtime.model import PackedModel

__all__ = ["PackedModel", "load"]

_HOMES = {"PackedModel": "model", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
