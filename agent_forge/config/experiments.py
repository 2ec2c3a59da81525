"""The part of an experiment that is about one phase: `forge bake experiment=smollm2_tools`.

An experiment in conf/experiment sets all phases of a run at once. For a single phase its section
is laid over the defaults, with what it says of all phases (seed, data, runtime), and the config
groups that it chooses in that section.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from agent_forge.config.overrides import field_hints, file_overrides, read_yaml
from agent_forge.core.errors import ConfigError, did_you_mean

KEY = "experiment="
# Commands that take experiments whole, or are not about a phase.
WHOLE = ("run_all", "base", "eval")


def for_phase(command: str, overrides: Sequence[str], schema: Any, conf: Any) -> list[str]:
    """Return the overrides with `experiment=NAME` replaced by NAME's settings for the phase.

    They come first, so that everything else on the command line wins. conf: the folder conf/.
    Raises ConfigError for an unknown experiment, and for one that says nothing of the phase.
    """
    chosen = [one for one in overrides if one.startswith(KEY)]
    if command in WHOLE or not chosen or chosen[-1] == f"{KEY}null":
        return list(overrides)
    rest = [one for one in overrides if not one.startswith(KEY)]
    name = chosen[-1].removeprefix(KEY).strip("'\"")
    return [*_settings(command, name, schema, conf.resolve()), *rest]


def _settings(command: str, name: str, schema: Any, conf: Any) -> Iterator[str]:
    folder = conf / "experiment"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise ConfigError(
            f"{command}: no experiment '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}"
        )
    root, loader = read_yaml(folder / f"{name}.yaml")
    parts = {key.value: value for key, value in root.value}
    if command not in parts:
        raise ConfigError(
            f"{command}: experiment '{name}' says nothing of {command}; it sets {', '.join(parts)}"
        )
    defaults = loader.construct_object(parts["defaults"], deep=True) if "defaults" in parts else []
    yield from _choices(command, defaults)
    # bitnet has a part called train; the section `train` of an experiment is that of the phase.
    sections = {path.stem for path in conf.glob("*.yaml")}
    shared = (set(field_hints(schema)) & set(parts)) - sections
    root.value = [(key, value) for key, value in root.value if key.value in shared]
    yield from file_overrides(root, loader, schema)
    yield from file_overrides(parts[command], loader, schema)


def _choices(command: str, defaults: Sequence[Any]) -> Iterator[str]:
    """Yield the choices of groups inside the phase's section: GROUP@PART=OPTION."""
    for entry in defaults:
        if not isinstance(entry, dict):
            continue
        for key, option in entry.items():
            group, _, place = key.removeprefix("override ").strip().strip("/").partition("@")
            phase, _, part = place.partition(".")
            if phase == command:
                yield f"{group}={option}" if part in ("", group) else f"{group}@{part}={option}"
