"""Find plug-ins by file name: a merge method, codec, task or tool is one module in its folder."""

import importlib
import pkgutil
from types import ModuleType

from agent_forge.core.errors import ConfigError, did_you_mean


def names(package: str) -> list[str]:
    """Return the sorted module names in `package`, without importing them (leading "_" is private)."""
    folder = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(folder.__path__) if not m.name.startswith("_"))


def load(package: str, name: str, kind: str) -> ModuleType:
    """Import `package.name`. Raises ConfigError naming the nearest known `kind` when there is none."""
    known = names(package)
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"no {kind} '{name}'{hint}; known: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
