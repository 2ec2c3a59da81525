"""Read the `config` of a request: settings by name, in which no value is a path or code.

A client sends a nested object, `{"train": {"steps": 50}}`, or a list of overrides as on the command
line, `["train.steps=50", "optim=muon"]`. What would be a path there is a name here: sources are ids
of checkpoints, data are sources that the operator registered. `out`, `data.cache` and `run_dir`
belong to the server. Keys and types are checked here without Hydra, whose composition keeps global
state and takes most of a second; limits and combinations are checked where the job composes.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args, get_origin

from agent_forge.config.compose import all_overrides
from agent_forge.config.overrides import bare, field_hints, hint_of, quote
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.pipeline.run_all import COMMAND
from agent_forge.server.catalogue import groups, phases, run_schema

RUN_ALL = "run-all"
KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*(@[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)?", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)
# Settings that the server fills in, as the end of their dotted name.
ASSIGNED = ("out", "data.cache", "run_dir", "search.ray_address")
# Settings whose paths are names here: of checkpoints, and of data sources.
CHECKPOINTS = ("sources", "gate.base")
DATA = ("data.text", "data.rows")
FORBIDDEN = ("_target_", "_recursive_", "_convert_", "_partial_", "_args_")
MOST_SETTINGS = 1000
DEEPEST = 12

Config = Mapping[str, Any] | Sequence[str] | None


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """What a client asked for.

    overrides: settings without paths, as KEY=VALUE. checkpoints, data: setting -> names that stand
    for paths.
    """

    overrides: list[str]
    checkpoints: dict[str, list[str]]
    data: dict[str, list[str]]

    def resolved(
        self, path_of: Callable[[str], str], data_of: Callable[[str, str], str]
    ) -> list[str]:
        """Return all settings as overrides for the command line, names replaced by paths.

        path_of: id of a checkpoint -> its directory. data_of: setting and name of a source -> what
        that setting takes.
        """
        lines = list(self.overrides)
        for key, ids in self.checkpoints.items():
            paths = [quote(path_of(one)) for one in ids]
            lines.append(f"{key}=[{','.join(paths)}]" if _ends(key, ("sources",))
                         else f"{key}={''.join(paths)}")  # fmt: skip
        for key, names in self.data.items():
            lines.append(f"{key}=[{','.join(quote(data_of(key, name)) for name in names)}]")
        return lines


def schema_of(phase: str) -> tuple[str, type]:
    """Return the name of the composition and the dataclass of a phase, or of run-all.

    Raises ConfigError with the nearest name.
    """
    if phase.replace("_", "-") == RUN_ALL:
        return COMMAND, run_schema()
    known = phases()
    if phase not in known:
        names = (*known, RUN_ALL)
        hint = did_you_mean(phase, names)
        raise ConfigError(f"no phase '{phase[:100]}'{hint}; known: {', '.join(names)}")
    return phase, known[phase].config


def read_config(phase: str, config: Config) -> ClientSettings:
    """Return a request's settings after checking every key and type.

    Raises ConfigError, in one line, for a key that the phase does not have, a value of the wrong
    type, a path, a reference (`${...}`), `_target_` and Hydra's own settings.
    """
    _, schema = schema_of(phase)
    settings = ClientSettings([], {}, {})
    for count, (key, text) in enumerate(_pairs(config, schema), start=1):
        if count > MOST_SETTINGS:
            raise ConfigError(f"config has more than {MOST_SETTINGS} settings")
        _add(settings, key, text, schema)
    if settings.overrides:  # the types are checked, so that the caller hears of them now
        all_overrides(settings.overrides, None, schema)
    return settings


def _add(settings: ClientSettings, key: str, text: str, schema: type) -> None:
    """File one setting where it belongs. Raises ConfigError."""
    name = key.lstrip("+~")
    _refuse_code(key, text)
    if not KEY.fullmatch(name):
        raise ConfigError(f"cannot read the key '{name[:100]}'; keys are as in train.steps")
    if _ends(name, ASSIGNED):
        raise ConfigError(f"{name}: the server assigns this; leave it out")
    if _is_choice(name):
        _check_choice(name, text)
    elif name.endswith(".sources"):
        raise ConfigError(f"{name}: a pipeline's first phase reads its sources; set sources=[ID]")
    elif not _is_known(schema, name) and name != "sources":  # a pipeline has none in its schema
        known = [*_names(schema), *groups()]
        raise ConfigError(f"unknown key '{name[:100]}'{did_you_mean(name, known)}")
    if name != key and _ends(name, (*CHECKPOINTS, *DATA)):
        raise ConfigError(f"{key}: write it without the sign before its name")
    if _ends(name, CHECKPOINTS):
        settings.checkpoints[name] = _listed(name, text, "the id of a checkpoint")
    elif _ends(name, DATA):
        settings.data[name] = _listed(name, text, "the name of a data source (see /v1/data)")
    elif is_dataclass(hint_of(schema, name)) and text.lstrip().startswith("{"):
        raise ConfigError(f"{name}: give its settings one by one, as in {name}.NAME=VALUE")
    else:
        settings.overrides.append(f"{key}={text}" if text or key == name else key)


def _refuse_code(key: str, text: str) -> None:
    if any(word in key or word in text for word in FORBIDDEN):
        raise ConfigError(f"{key[:100]}: settings name phases, methods and codecs, never code")
    if "${" in key or "${" in text:
        raise ConfigError(f"{key[:100]}: references (${{...}}) are not accepted here")
    if "\0" in text:
        raise ConfigError(f"{key[:100]}: the value holds a NUL character")
    if key.lstrip("+~").partition(".")[0].partition("/")[0] == "hydra":
        raise ConfigError(f"{key[:100]}: Hydra's own settings are not accepted here")


def _is_choice(name: str) -> bool:
    """Return whether a key chooses an option of a config group, as in model=nano."""
    return "@" in name or name in groups()


def _check_choice(name: str, option: str) -> None:
    group, _, package = name.partition("@")
    known = groups()
    if group not in known:
        raise ConfigError(f"no config group '{group}'{did_you_mean(group, known)}")
    plain = option.strip("'\"")
    if plain not in known[group] and plain != "null":
        hint = did_you_mean(plain, known[group])
        raise ConfigError(f"no {group} '{plain[:100]}'{hint}; known: {', '.join(known[group])}")
    if _ends(package, (*ASSIGNED, *CHECKPOINTS, *DATA)):
        raise ConfigError(f"{name}: a group cannot stand there")


def _pairs(config: Config, schema: type) -> Iterator[tuple[str, str]]:
    """Yield (key, value as text in Hydra's grammar) of either form of a config."""
    if isinstance(config, Mapping):
        yield from _flat(config, "", schema, 0)
        return
    for line in config or ():
        key, equals, text = line.partition("=")
        if not equals and not line.startswith("~"):
            raise ConfigError(f"'{line[:100]}' is not KEY=VALUE; for example gate.items=64")
        yield key.strip(), text


def _flat(
    config: Mapping[str, Any], prefix: str, schema: type, depth: int
) -> Iterator[tuple[str, str]]:
    if depth > DEEPEST:
        raise ConfigError(f"{prefix[:100]}: nested too deeply")
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            if not value:
                raise ConfigError(f"{key[:100]}: an empty object would change nothing")
            yield from _flat(value, f"{key}.", schema, depth + 1)
        elif isinstance(value, str) and _is_choice(key):
            yield key, value
        else:
            yield key, _written(key, value, depth)


def _written(key: str, value: Any, depth: int) -> str:
    """Return a JSON value in Hydra's grammar."""
    if depth > DEEPEST:
        raise ConfigError(f"{key[:100]}: nested too deeply")
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        entries = (f"{name}:{_written(key, one, depth + 1)}" for name, one in value.items())
        return "{" + ",".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ",".join(_written(key, one, depth + 1) for one in value) + "]"
    return repr(value)


def _listed(key: str, text: str, what: str) -> list[str]:
    """Return the names in a value, `a`, `[a,b]` or either with quotes.

    Raises ConfigError for anything that could be a path.
    """
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    names = [one.strip().strip("'\"") for one in inner.split(",")] if inner.strip() else []
    names = [] if names == [""] else names
    for name in names:
        if not NAME.fullmatch(name) or ".." in name:
            raise ConfigError(f"{key}: '{name[:100]}' is not {what}; paths are not accepted")
    if _ends(key, ("gate.base",)) and len(names) > 1:
        raise ConfigError(f"{key} is one checkpoint, got {len(names)}")
    return names


def _ends(name: str, ends: Sequence[str]) -> bool:
    """Return whether a dotted name is one of `ends`, or ends in one."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _is_known(schema: Any, key: str) -> bool:
    """Return whether a schema has a setting, or a mapping that may get it as an entry."""
    hint = bare(schema)
    for part in key.split("."):
        if is_dataclass(hint) and isinstance(hint, type):
            hints = field_hints(hint)
            if part not in hints:
                return False
            hint = bare(hints[part])
        elif get_origin(hint) is dict:
            hint = bare(get_args(hint)[1])
        elif hint is not Any:
            return False
    return True


def _names(schema: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all settings of a schema, and of their parts."""
    for name, hint in field_hints(schema).items():
        kind = bare(hint)
        yield f"{prefix}{name}"
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _names(kind, f"{prefix}{name}.")
