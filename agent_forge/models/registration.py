"""Tell transformers of our model types and quantisers, so that plain `from_pretrained` opens our checkpoints.

Each module registers what it defines; `register()` only calls them. It runs when transformers is imported, and again
before a load: a model module that was itself the first to import transformers was not whole the first time.
"""

import importlib
import importlib.util
import sys

# cognate: model type; thought: wrapper; ternary, compressed: quantisers.
MODULES = ("cognate", "thought", "ternary", "compressed")
_done: set[str] = set()


def register() -> None:
    """Register every model type and quantiser of this package. Calling it again changes nothing."""
    for name in MODULES:
        full = f"agent_forge.models.{name}"
        if name in _done or importlib.util.find_spec(full) is None or _is_being_imported(full):
            continue
        importlib.import_module(full).register()
        _done.add(name)


def _is_being_imported(full: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(full), "__spec__", None), "_initializing", False))
