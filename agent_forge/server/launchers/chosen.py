"""Which launcher a server uses: the local one, or the one that a YAML file describes.

    launcher: slurm
    most_jobs: 8
    parameters: {slurm_partition: gpu, timeout_min: 600}

The file names a launcher and its settings, which are the arguments of its class. They are checked
before the server opens anything.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.server.launchers import Launcher
from agent_forge.server.launchers.cluster import ClusterLauncher
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.launchers.skypilot import SkyLauncher
from agent_forge.server.launchers.slurm import SlurmLauncher

LAUNCHERS: Mapping[str, type[LocalLauncher | ClusterLauncher]] = {
    one.name: one for one in (LocalLauncher, SlurmLauncher, SkyLauncher)
}
# Launcher -> setting -> its type.
SHARED = {"command": list, "allowed": list, "most_jobs": int}
SETTINGS: Mapping[str, Mapping[str, type]] = {
    "local": {"command": list, "allowed": list},
    "slurm": {**SHARED, "parameters": dict, "gpus_per_process": int},
    "skypilot": {**SHARED, "task": dict},
}
WORDS = {list: "a list of texts", int: "a whole number, 1 or more", dict: "a mapping"}
FROM_ZERO = ("gpus_per_process",)


def launcher(name: str, settings: Mapping[str, Any]) -> Launcher:
    """Return the launcher of a name. Raises ConfigError for a name or setting that is not known."""
    if name not in LAUNCHERS:
        hint = did_you_mean(name, LAUNCHERS)
        raise ConfigError(f"no launcher '{name}'{hint}; known: {', '.join(LAUNCHERS)}")
    for key, value in settings.items():
        _check(name, key, value)
    return LAUNCHERS[name](**settings)


def read_launcher(file: Path) -> Launcher:
    """Return the launcher that a file describes, once its commands are known to be there.

    Raises ConfigError.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--launcher {file}: cannot be read: {reason}") from None
    if not isinstance(content, dict) or not isinstance(content.get("launcher"), str):
        known = ", ".join(LAUNCHERS)
        raise ConfigError(f"--launcher {file}: names no launcher; write `launcher: NAME` ({known})")
    name = content.pop("launcher")
    try:
        described = launcher(name, content)
        if isinstance(described, ClusterLauncher):
            described.check()
    except ConfigError as error:
        raise ConfigError(f"--launcher {file}: {error}") from None
    return described


def _check(name: str, key: Any, value: Any) -> None:
    """Raise ConfigError for a setting that a launcher does not have, or of another type."""
    known = SETTINGS[name]
    if key not in known:
        hint = did_you_mean(str(key), known)
        raise ConfigError(f"{name} has no setting '{key}'{hint}; known: {', '.join(known)}")
    kind = known[key]
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if kind is list:
        fits = fits and all(isinstance(one, str) for one in value)
    if kind is int:
        fits = fits and value >= (0 if key in FROM_ZERO else 1)
    if not fits:
        words = WORDS[kind] if key not in FROM_ZERO else "a whole number, 0 or more"
        raise ConfigError(f"{name}: {key} must be {words}, got {value!r}")
