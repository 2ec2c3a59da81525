"""What the shell offers after `forge <phase> `: config keys, options of groups, and known values.

They are read only from the YAML files of conf/, so that the tab key loads neither Hydra nor torch.
"""

from collections.abc import Mapping

import typer

from agent_forge.config.compose import CONF, flatten, groups
from agent_forge.config.explain import OVERRIDE, tree

RUN_ALL = "run_all"


def complete_override(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Return (completion, help) for a KEY=VALUE that is being typed after a phase or run-all."""
    command = (context.info_name or "").replace("-", "_")
    if not (CONF / f"{command}.yaml").is_file():
        command = "base"
    key, typed, _ = incomplete.partition("=")
    if typed:
        return [
            (f"{key}={value}", "")
            for value in _values(command, key)
            if f"{key}={value}".startswith(incomplete)
        ]
    offers = {name: _shown(value) for name, value in flatten(tree(command))}
    offers |= {name: f"one of {', '.join(_values(command, name))}" for name in _chosen(command)}
    return [
        (f"{name}=", text) for name, text in sorted(offers.items()) if name.startswith(incomplete)
    ]


def complete_config(incomplete: str) -> list[str]:
    """Return the names of conf/experiment for `--config`; the shell itself completes files."""
    return [name for name in groups().get("experiment", []) if name.startswith(incomplete)]


def _chosen(command: str) -> list[str]:
    """Return the groups from which a command's defaults list takes an option."""
    import yaml

    content = yaml.safe_load((CONF / f"{command}.yaml").read_text(encoding="utf-8")) or {}
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, Mapping)]
    return [
        str(group) for entry in entries for group in entry if not str(group).startswith(OVERRIDE)
    ]


def _values(command: str, key: str) -> list[str]:
    if key in _chosen(command):
        return groups().get(key.partition("@")[0], [])
    value = dict(flatten(tree(command))).get(key)
    if isinstance(value, bool):
        return ["true", "false"]
    if key == "gate.on_failure" or key.endswith(".gate.on_failure"):
        return ["stop", "rollback", "continue"]
    return []


def _shown(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
