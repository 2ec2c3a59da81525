"""Compose conf/, a user's file and command-line overrides into one typed object.

Precedence: conf < file < command line; a file is turned into overrides, so that one Hydra
composition does it all. The phase's dataclass says which keys and types exist, and every error is
one line with the nearest known key. Hydra keeps global state, so composition is not for threads.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_origin

from agent_forge.config.experiments import for_phase
from agent_forge.config.limits import check
from agent_forge.config.overrides import (
    file_overrides,
    hint_of,
    quote,
    read_yaml,
    settings_in_braces,
    typed_override,
)
from agent_forge.config.schema import RuntimeConfig
from agent_forge.core.errors import ConfigError, did_you_mean

T = TypeVar("T")
CONF = Path(__file__).resolve().parent.parent / "conf"
READ_WHOLE = ("data", "eval")  # folders of conf/ that are not groups of options


def compose(
    command: str, schema: type[T], overrides: Sequence[str] = (), file: str | None = None
) -> T:
    """Return the typed settings of `command`.

    file: a YAML file laid over the defaults, or the name of one in conf/experiment, of which a
    phase takes its own part. Raises ConfigError for an unknown key (with the nearest one), a wrong
    type, a missing value or a bad combination.
    """
    chosen = for_phase(command, all_overrides(overrides, file, schema), schema, CONF)
    settings = [_force_free_mapping(one, schema) for one in chosen]
    return to_typed(compose_tree(command, settings), schema, command)


def all_overrides(
    overrides: Sequence[str], file: str | None, schema: Any = Any, *, sweep: bool = False
) -> list[str]:
    """Return the settings of `file` followed by `overrides`, all as Hydra overrides that keep
    values as typed.

    schema: the dataclass that says which settings are text. sweep: commas separate the values of
    several jobs. Raises ConfigError for `_target_`, for a key or value that cannot be read, and for
    a value of the wrong kind.
    """
    from_file = _file_overrides(file, schema) if file else []
    for override in (*from_file, *overrides):
        if "_target_" in override:
            raise ConfigError(
                f"{override}: _target_ is not accepted; settings name phases, methods and codecs only"
            )
        if override.lstrip("+~").startswith("hydra.searchpath"):
            raise ConfigError(f"{override}: settings come from conf/ and --config FILE only")
        if override.lstrip("+~").startswith(("hydra.", "hydra/", "hydra=")) and not sweep:
            raise ConfigError(
                f"{override}: Hydra's own settings act on sweeps alone; add -m, or leave it out"
            )
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"'{override}' is not KEY=VALUE; for example gate.items=64")
    single = [one for override in overrides for one in _single_settings(override, schema)]
    written = [*from_file, *(_written(override, schema, sweep) for override in single)]
    return [_force_free_mapping(override, schema) for override in written]


def _single_settings(override: str, schema: Any) -> list[str]:
    """Return `optim={lr: 0.1}` as `optim.lr=0.1`: Hydra takes the name of a group for a choice of
    an option.
    """
    key, _, text = override.partition("=")
    is_part = key in groups() and is_dataclass(hint_of(schema, key))
    return (
        settings_in_braces(key, text) if is_part and text.lstrip().startswith("{") else [override]
    )


def _written(override: str, schema: Any, sweep: bool) -> str:
    folder = override.partition("=")[0].lstrip("+~").partition("@")[0]
    if folder in groups() or folder.startswith("hydra"):
        return _quote_option(override)
    return typed_override(override, schema, sweep=sweep)


def compose_tree(command: str, overrides: Sequence[str] = ()) -> Any:
    """Return the composed DictConfig of `command`, not yet typed."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
            return hydra_compose(command, overrides=list(overrides))
    except (
        HydraException,
        OmegaConfBaseException,
        ValueError,
    ) as error:  # Hydra raises bare ValueErrors too
        raise ConfigError(_one_line(error, command, overrides)) from None


def to_typed(tree: Any, schema: type[T], command: str, prefix: str = "") -> T:
    """Return `tree` as an instance of the dataclass `schema`.

    prefix: what stands before the keys where `tree` is a part of a larger one, such as "cognate.".
    Raises ConfigError on a key or type that does not fit, on a value outside the limits beside its
    field, and where `validate()` of a part finds settings that contradict each other.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        # A part of a larger tree is resolved where it stands: its interpolations point outside of
        # it.
        values = OmegaConf.to_container(tree, resolve=True) if OmegaConf.is_config(tree) else tree
        plain = OmegaConf.create(_literal(values))
        merged = OmegaConf.merge(OmegaConf.structured(schema), plain)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise ConfigError(f"{command}: no value for {', '.join(missing)}; set it as KEY=VALUE")
        check(OmegaConf.to_container(merged, resolve=True), schema, prefix)  # type: ignore[arg-type]
        settings: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_one_line(error, command)) from None
    try:
        _validate(settings)
    except ConfigError as error:
        raise ConfigError(f"{command}: {error}" if prefix else str(error)) from None
    return settings  # type: ignore[no-any-return]


def _validate(settings: Any) -> None:
    """Call `validate()` of every part that has one, inner parts first.

    By then each part is complete and within its limits.
    """
    inner = [getattr(settings, field.name) for field in fields(settings)]
    parts = [
        *inner,
        *(part for value in inner if isinstance(value, dict) for part in value.values()),
    ]
    for part in parts:
        if is_dataclass(part):
            _validate(part)
    if hasattr(settings, "validate"):
        settings.validate()


def default_runtime() -> RuntimeConfig:
    """Return the runtime settings that conf/ gives every phase, for training outside of a phase."""
    import yaml

    content = (CONF / "_shared" / "runtime.yaml").read_text(encoding="utf-8")
    return RuntimeConfig(**yaml.safe_load(content))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def groups() -> dict[str, list[str]]:
    """Return the config groups of conf/ and their options, without the folders that are read whole:
    suites of tasks and recipes of data sets.
    """
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(CONF.resolve().iterdir())
        if folder.is_dir()
        and not folder.name.startswith((".", "_"))
        and folder.name not in READ_WHOLE
    }


def _literal(value: Any) -> Any:
    """Return resolved values with every remaining `${` escaped.

    What remains is text, which must not be looked up again.
    """
    if isinstance(value, str):
        return value.replace("${", "\\${")
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    return [_literal(item) for item in value] if isinstance(value, list) else value


def _file_overrides(file: str, schema: Any) -> list[str]:
    """Return the settings of a file as typed overrides, or the choice of the experiment `file`."""
    import yaml

    path = Path(file)
    if not path.suffix and not path.exists():
        known = groups().get("experiment", [])
        if file not in known:
            raise ConfigError(
                f"--config {file}: no such file, and no experiment of that name{did_you_mean(file, known)}"
            )
        return [f"experiment={file}"]
    root, loader = read_yaml(path)
    if root is None:
        return []
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{file}: settings are expected as KEY: VALUE lines")
    chosen: list[str] = []
    for pair in [pair for pair in root.value if pair[0].value == "defaults"]:
        root.value.remove(pair)
        chosen += _choices(file, loader.construct_object(pair[1], deep=True))
    try:
        settings = list(file_overrides(root, loader, schema))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    return [_quote_option(setting) for setting in [*chosen, *settings]]


def _choices(file: str, defaults: Any) -> list[str]:
    """Return the group choices of a defaults list.

    Raises ConfigError for an entry that does not choose an option.
    """
    chosen = []
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        if isinstance(entry, Mapping):
            chosen += [
                f"{str(k).removeprefix('override ').strip('/')}={v}" for k, v in entry.items()
            ]
        elif entry != "_self_":
            raise ConfigError(f"{file}: defaults entries are GROUP: OPTION, got {entry!r}")
    return chosen


def _quote_option(override: str) -> str:
    """Let `model=25` be the name of an option, which Hydra takes for a number and breaks on."""
    key, _, value = override.partition("=")
    plain = re.fullmatch(r"[A-Za-z_][\w/,-]*|null|\[.*\]|'.*'|\$\{.*\}", value, re.ASCII)
    return override if plain or key.partition("@")[0] not in groups() else f"{key}={quote(value)}"


def _force_free_mapping(override: str, schema: Any) -> str:
    """Return the override, which may add entries to a mapping: `gate.tasks.choice=0.9`.

    The defaults do not fix the keys of such mappings.
    """
    key = override.split("=", 1)[0]
    parts = key.split(".")
    above = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    free = not key.startswith(("+", "~")) and any(
        get_origin(hint_of(schema, name)) is dict for name in above
    )
    return f"++{override}" if free else override


def _one_line(error: Exception, command: str, overrides: Sequence[str] = ()) -> str:
    """Return an error of Hydra or OmegaConf as one line with the key and the nearest known key."""
    text = f"{error}\n{error.__cause__ or ''}"
    key = re.search(r"full_key: (\S+)", text) or re.search(
        r"Could not override '([^']+)'|Key '([^']+)' (?:is )?not in", text
    )
    name = next((group for group in key.groups() if group), "") if key else ""
    if name and re.search(r"not in|Could not override", text):
        keys = (override.partition("=")[0].lstrip("+~") for override in overrides)
        name = next(
            (key for key in keys if key.startswith(f"{name}.")), name
        )  # Hydra stops at the first part
        if name == "experiment":
            return f"{command}: experiments set all phases at once; use them with `forge run-all experiment=NAME`"
        return f"{command}: unknown key '{name}'{_nearest(name, _known_keys(command))}"
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
    first = " ".join(
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and "object_type" not in line
    )
    return f"{command}: {first.replace('full_key:', 'at').strip()}"


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return a hint for an unknown key: the known keys that end in it, or the nearest one."""
    owners = sorted(
        {key.partition(".")[0] for key in known if key.partition(".")[2] == name},
        key=known_order(known),
    )
    if owners:
        return f"; each phase has its own: {', '.join(f'{owner}.{name}' for owner in owners)}"
    return did_you_mean(name, known)


def known_order(known: Sequence[str]) -> Callable[[str], int]:
    """Return a sort key: the place of the first known key below a name."""
    first = {key.partition(".")[0]: place for place, key in reversed(list(enumerate(known)))}
    return lambda name: first[name]


def _known_keys(command: str) -> list[str]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        tree = OmegaConf.to_container(hydra_compose(command), resolve=False)
    names = [name for name, _ in flatten(tree)]  # type: ignore[arg-type]
    parts = sorted({name.rpartition(".")[0] for name in names if "." in name})
    return [*names, *parts, *groups()]
