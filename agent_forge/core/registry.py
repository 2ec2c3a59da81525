"""Find plug-ins by file name: a merge method, codec, task or tool is one module in its folder."""

import importlib
import importlib.util
import pkgutil
import sys
import traceback
from pathlib import Path
from types import ModuleType

from agent_forge.core.errors import ConfigError, ForgeError, did_you_mean


def names(package: str) -> list[str]:
    """Return the sorted module names in `package`, without importing them (leading "_" is
    private).
    """
    return sorted(
        m.name for m in pkgutil.iter_modules(_folders(package)) if not m.name.startswith("_")
    )


def load(package: str, name: str, kind: str) -> ModuleType:
    """Import `package.name`. Raises ConfigError naming the nearest known `kind` when there is
    none.
    """
    known = names(package)
    if name not in known:
        hint = did_you_mean(name, known)
        raise ConfigError(f"no {kind} '{name}'{hint}; known: {', '.join(known)}")
    try:
        return importlib.import_module(f"{package}.{name}")
    except ForgeError:
        raise
    except (
        Exception
    ) as error:  # a plug-in is anybody's code: whatever it raises is told in one line with its file
        raise ConfigError(
            f"{kind} '{name}' does not import: {_where(error)}{type(error).__name__}: {error}"
        ) from error


def _where(error: Exception) -> str:
    """Return the file and line that an import stopped at: where the innermost frame is, or the
    syntax error.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}: "
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""


def _folders(package: str) -> list[str]:
    """Return the directories of a package. Its parents are not imported: most of them bring
    torch.
    """
    if package in sys.modules:
        return list(sys.modules[package].__path__)
    root, _, rest = package.partition(".")
    spec = importlib.util.find_spec(root)
    if spec is None or spec.submodule_search_locations is None:
        raise ConfigError(f"no package {package}")
    return [str(Path(place, *rest.split("."))) for place in spec.submodule_search_locations]
