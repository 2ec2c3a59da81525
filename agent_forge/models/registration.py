"""Register our model types and quantisers, so that plain `from_pretrained` opens our checkpoints.

Each module registers what it defines; `register()` only calls them. It runs when transformers is
imported, and again before a load. It does nothing while one of our own model modules is being
imported, which happens where that module is the first to import transformers.
"""

import importlib
import sys
from types import ModuleType

# cognate: model type; thought: wrapper; ternary, compressed: quantisers.
MODULES = ("cognate", "thought", "ternary", "compressed")
_done: set[str] = set()


def register() -> None:
    """Register every model type and quantiser of this package. Calling it again changes nothing."""
    names = [name for name in MODULES if name not in _done]
    if not names or _room_is_being_imported():
        return
    for name in names:
        importlib.import_module(f"agent_forge.models.{name}").register()
        _done.add(name)


def _room_is_being_imported() -> bool:
    """Return whether another module of this room is half imported.

    More imports would be circular.
    """
    return any(
        name.startswith("agent_forge.models.") and name != __name__ and _initialising(module)
        for name, module in list(sys.modules.items())
    )


def _initialising(module: ModuleType) -> bool:
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))
