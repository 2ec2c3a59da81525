"""Tell transformers of our model types and quantisers, so that plain `from_pretrained` opens our checkpoints.

Each module registers what it defines; `register()` only calls them. It runs once, when transformers is imported.
"""

import importlib
import importlib.util

# cognate: model type; thought: wrapper; ternary, compressed: quantisers.
MODULES = ("cognate", "thought", "ternary", "compressed")


def register() -> None:
    """Register every model type and quantiser of this package. Calling it again changes nothing."""
    for name in MODULES:
        full = f"agent_forge.models.{name}"
        if importlib.util.find_spec(full) is not None:
            importlib.import_module(full).register()
