"""Compose conf/, a user's file and command-line overrides into one typed object.

Precedence: conf < file < command line; a file is turned into overrides, so that one Hydra composition does it all. The
phase's dataclass says which keys and types exist, and every error is one line with the nearest known key.
Hydra keeps global state, so composition is not for threads.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent_forge.core.errors import ConfigError, did_you_mean

T = TypeVar("T")
CONF = Path(__file__).resolve().parent.parent / "conf"
# Mappings whose keys are names that the user chooses; the room that reads them checks the names.
FREE_MAPPINGS = frozenset({"tasks", "chain", "mix", "weights", "fitness"})


def compose(command: str, schema: type[T], overrides: Sequence[str] = (), file: str | None = None) -> T:
    """Return the typed settings of `command`.

    file: a YAML file laid over the defaults, or the name of one in conf/experiment.
    Raises ConfigError for an unknown key (with the nearest one), a wrong type, a missing value or a bad combination.
    """
    return to_typed(compose_tree(command, all_overrides(overrides, file)), schema, command)


def all_overrides(overrides: Sequence[str], file: str | None) -> list[str]:
    """Return the settings of `file` followed by `overrides`, all as Hydra overrides. Refuses `_target_`."""
    found = [*(_file_overrides(file) if file else []), *overrides]
    for override in found:
        if "_target_" in override:
            raise ConfigError(f"{override}: _target_ is not accepted; settings name phases, methods and codecs only")
        if override.lstrip("+~").startswith("hydra.searchpath"):
            raise ConfigError(f"{override}: settings come from conf/ and --config FILE only")
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"'{override}' is not KEY=VALUE; for example gate.items=64")
    return [_force_free_mapping(_quote_option(override)) for override in found]


def compose_tree(command: str, overrides: Sequence[str] = ()) -> Any:
    """Return the composed DictConfig of `command`, not yet typed."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return hydra_compose(command, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # Hydra raises bare ValueErrors too
        raise ConfigError(_one_line(error, command)) from None


def to_typed(tree: Any, schema: type[T], command: str) -> T:
    """Return `tree` as an instance of the dataclass `schema`. Raises ConfigError on a key or type that does not fit."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # A part of a larger tree is resolved where it stands: its interpolations point outside of it.
        node = tree if OmegaConf.is_config(tree) else OmegaConf.create(tree)
        plain = OmegaConf.create(OmegaConf.to_container(node, resolve=True))  # type: ignore[arg-type]
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{command}: no value for {', '.join(missing)}; set it as KEY=VALUE")
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error, command)) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def groups() -> dict[str, list[str]]:
    """Return the config groups of conf/ and their options."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.resolve().iterdir())
        if folder.is_dir() and not folder.name.startswith((".", "_"))
    }


def _file_overrides(file: str) -> list[str]:
    import yaml

    path = Path(file)
    if not path.suffix and not path.exists():
        known = groups().get("experiment", [])
        if file not in known:
            raise ConfigError(
                f"--config {file}: no such file, and no experiment of that name{did_you_mean(file, known)}"
            )
        return [f"experiment={file}"]
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {file}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return []
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: settings are expected as KEY: VALUE lines")
    chosen = content.pop("defaults", [])
    choices = [
        f"{str(k).removeprefix('override ').strip('/')}={v}"
        for e in chosen
        if isinstance(e, dict)
        for k, v in e.items()
    ]
    return choices + [f"{name}={_hydra_value(value)}" for name, value in flatten(content)]


def _hydra_value(value: Any) -> str:
    """Write a YAML value in Hydra's override grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_hydra_value(item) for item in value) + "]"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quote_option(override: str) -> str:
    """Let `model=25` be the name of an option, which Hydra takes for a number and breaks on."""
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if key in groups() and re.fullmatch(r"[-+.\d]+", value) else override


def _force_free_mapping(override: str) -> str:
    """Let `gate.tasks.choice=0.9` and `train.mix={own: 1}` add entries: the defaults do not fix these mappings' keys."""
    key = override.split("=", 1)[0]
    if not key.startswith(("+", "~")) and not FREE_MAPPINGS.isdisjoint(key.split(".")[-2:]):
        return f"++{override}"
    return override


def _one_line(error: Exception, command: str) -> str:
    """Reduce an error of Hydra or OmegaConf to one line that names the key and the nearest known one."""
    text = f"{error}\n{error.__cause__ or ''}"
    key = re.search(r"full_key: (\S+)", text) or re.search(
        r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text
    )
    name = next((group for group in key.groups() if group), "") if key else ""
    if name and re.search(r"not in|Could not override", text):
        if name == "experiment":
            return f"{command}: experiments set all phases at once; use them with `forge run-all experiment=NAME`"
        return f"{command}: unknown key '{name}'{did_you_mean(name, _known_keys(command))}"
    group = re.search(r"Could not find '([^']+)'", text)
    if group:
        folder, _, option = group.group(1).rpartition("/")
        options = groups().get(folder, [])
        return f"{command}: no {group.group(1)}{did_you_mean(option, options)}; known: {', '.join(options) or 'none'}"
    if "Config group override must be" in text:
        return f"{command}: a config group is chosen by name, GROUP=NAME; groups: {', '.join(groups())}"
    if "no viable alternative" in text or "mismatched input" in text or "extraneous input" in text:
        wrong = getattr(error, "override", None) or "an override"
        return f"{command}: cannot read '{wrong}' (an override is KEY=VALUE; quote lists and spaces for the shell)"
    first = " ".join(line.strip() for line in str(error).splitlines() if line.strip() and "object_type" not in line)
    return f"{command}: {first.replace('full_key:', 'at').strip()}"


def _known_keys(command: str) -> list[str]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        tree = OmegaConf.to_container(hydra_compose(command), resolve=False)
    names = [name for name, _ in flatten(tree)]  # type: ignore[arg-type]
    return names + sorted({name.rpartition(".")[0] for name in names if "." in name}) + list(groups())
