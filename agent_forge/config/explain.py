"""Explain settings from the comments of conf/*.yaml, the one place where each is explained.

A comment behind a value explains it; comment lines right above a key come before that. A mapping
written on one line shares its comment with what is in it. Where a part is used more than once (an
optimiser, a specialist), its settings are explained where they are explained first. A comment that
begins with `(expert)` marks a setting that few people change; on the key of a part it marks all of
the part.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from typing import Any

from agent_forge.config.compose import CONF, flatten
from agent_forge.config.limits import Limit, Range, limits
from agent_forge.config.overrides import bare, field_hints

KEY_LINE = re.compile(r"( *)([\w]+):(.*)")
COMMENT = re.compile(r"""((?:[^"'#]|"[^"]*"|'[^']*'|(?<!\s)#)*?)(?:\s#\s?(.*))?""")
EXPERT = "(expert)"
# The name of a setting, or else its last word, says what its number counts or measures.
UNITS = {
    "fitness": "weight", "mix": "weight", "tasks": "ratio", "chain": "ratio", "vocab_size": "tokens",
    "max_position_embeddings": "tokens", "weight_decay": "per step",
    "bits": "bits", "bytes": "bytes", "candidates": "candidates", "heads": "heads", "items": "items",
    "layers": "layers", "loops": "passes", "lr": "per step", "mb": "megabytes", "minutes": "minutes",
    "nats": "nats per token", "parameters": "parameters", "processes": "processes", "rows": "rows",
    "samples": "resamples", "seconds": "seconds", "size": "width", "slots": "slots", "steps": "steps",
    "threads": "threads", "tokens": "tokens", "windows": "windows", "workers": "processes",
    "ratio": "ratio", "scale": "factor", "share": "share", "weight": "weight",
}  # fmt: skip
UNBOUNDED = re.compile(
    r" and at most [\d.]+e\+\d+"
)  # a bound that nobody meets is not worth a reader's time
OVERRIDE = (
    "override "  # an entry of a defaults list that takes another option of a group named before it
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of `forge settings PHASE`. expert: few people change it."""

    key: str
    default: Any
    unit: str
    allowed: str
    explanation: str
    expert: bool


def settings(command: str, schema: type, others: Mapping[str, type]) -> list[Setting]:
    """Return every setting of a phase with its default, what it may be and its explanation, in the
    order of the schema.

    others: phase -> schema, where parts that phases share may be explained.
    """
    defaults = dict(flatten(tree(command)))
    comments = explanations(command)
    shared = _by_type(schema, comments)
    for other, its in others.items():
        shared = _by_type(its, explanations(other)) | shared
    rows = []
    for key, owner, name, hint in _leaves(schema):
        of_field = (
            comments.get(key)
            or shared.get((owner, name))
            or comments.get(key.rpartition(".")[0], "")
        )
        for leaf in sorted(
            (k for k in defaults if k == key or k.startswith(f"{key}.")), key=list(defaults).index
        ):
            text = comments.get(leaf) or of_field
            above = (
                comments.get(leaf.rsplit(".", depth)[0], "")
                for depth in range(1, leaf.count(".") + 1)
            )
            rows.append(
                Setting(
                    key=leaf, default=defaults[leaf], unit=_unit(name, hint), allowed=_allowed(hint),
                    explanation=text.removeprefix(EXPERT).strip(),
                    expert=any(one.startswith(EXPERT) for one in (text, of_field, *above)),
                )
            )  # fmt: skip
    return rows


def explanations(file: str) -> dict[str, str]:
    """Return dotted key -> comment, of conf/<file>.yaml and of the files in its defaults list."""
    import yaml

    content = yaml.safe_load((CONF / f"{file}.yaml").read_text(encoding="utf-8")) or {}
    merged: dict[str, str] = {}
    for name, package in _parts(file, content.get("defaults", [])):
        inner = explanations(name)
        merged |= {f"{package}.{key}" if package else key: text for key, text in inner.items()}
    own = _comments((CONF / f"{file}.yaml").read_text(encoding="utf-8").splitlines())
    return merged | {key: text for key, text in own.items() if text}


@cache
def tree(command: str) -> dict[str, Any]:
    """Return the defaults of one command: its own file over those that its defaults list names."""
    import yaml

    content = yaml.safe_load((CONF / f"{command}.yaml").read_text(encoding="utf-8")) or {}
    merged: dict[str, Any] = {}
    for name, package in _parts(command, content.pop("defaults", [])):
        _lay_over(merged, _packaged(tree(name), package))
    _lay_over(merged, content)
    return merged


def _packaged(values: Mapping[str, Any], package: str) -> Mapping[str, Any]:
    """Return values below the dotted name of a package."""
    for part in reversed(package.split(".") if package else []):
        values = {part: values}
    return values


def _parts(file: str, defaults: list[Any]) -> Iterator[tuple[str, str]]:
    """Yield (file, package) of what a defaults list takes, in order."""
    for entry in defaults:
        if isinstance(entry, str) and entry != "_self_":
            name, _, package = entry.partition("@")
            # In a file of a group, a bare name is an option of that group.
            yield f"{file.rpartition('/')[0]}/{name}".lstrip("/"), package
        elif isinstance(entry, Mapping):
            for group, option in entry.items():
                # An override has the same keys with other values.
                if option is not None and not str(group).startswith(OVERRIDE):
                    name, _, package = str(group).partition("@")
                    chosen = f"{name}/{option}"
                    yield chosen, "" if _is_global(chosen) else package or name


def _is_global(file: str) -> bool:
    """Return whether a file's keys are those of the whole config, whatever group it is of."""
    first = (CONF / f"{file}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.split() == ["#", "@package", "_global_"]


def _lay_over(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, Mapping):
            inner = below.get(key)
            below[key] = dict(inner) if isinstance(inner, Mapping) else {}
            _lay_over(below[key], value)
        else:
            below[key] = value


def _comments(lines: list[str]) -> dict[str, str]:
    """Return dotted key -> comment of the lines of one YAML file in block style."""
    comments: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    last = ""
    inside: list[str] = []
    for line in lines:
        match = KEY_LINE.fullmatch(line)
        stripped = line.strip()
        if match and not stripped.startswith("#"):
            indent = len(match[1])
            path = [entry for entry in path if entry[0] < indent] + [(indent, match[2])]
            last = ".".join(name for _, name in path)
            parts = COMMENT.fullmatch(match[3])
            behind = (parts[2] or "") if parts else ""
            of_file = not comments  # the first lines describe the file, not its first key
            comments[last] = " ".join([*([] if of_file else above), behind]).strip()
            inside = [f"{last}.{name}" for name in _flow_names(parts[1] if parts else "")]
            comments |= dict.fromkeys(inside, behind)
            above = []
        elif stripped.startswith("#"):
            text = stripped.lstrip("# ")
            deep = len(line) - len(line.lstrip())
            # A deeply indented line continues the comment behind the last value.
            if last and deep > 20 and comments.get(last):
                for key in (last, *inside):
                    comments[key] += f" {text}"
            else:
                above.append(text)
        else:
            above = []
    return comments


def _flow_names(text: str) -> list[str]:
    """Return the dotted names inside a mapping that is written on one line."""
    import yaml

    if not text.strip().startswith("{"):
        return []
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return []
    return list(dict.fromkeys([*(name for name, _ in flatten(value)), *map(str, value)]))


def _leaves(schema: type, prefix: str = "") -> Iterator[tuple[str, type, str, Any]]:
    """Yield (dotted key, dataclass, field, type) of every setting of a schema."""
    for name, hint in field_hints(schema).items():
        kind = bare(hint)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", schema, name, hint


def _by_type(schema: type, comments: Mapping[str, str]) -> dict[tuple[type, str], str]:
    """Return (dataclass, field) -> the first explanation of it."""
    explained: dict[tuple[type, str], str] = {}
    for key, owner, name, _ in _leaves(schema):
        if comments.get(key):
            explained.setdefault((owner, name), comments[key])
    return explained


def _unit(name: str, hint: Any) -> str:
    """Return what the number of a setting counts or measures, by its name, else by its type."""
    kind = bare(hint)
    inner = getattr(kind, "__args__", ())
    if kind is bool:
        return "switch"
    if kind is str or (inner and bare(inner[-1]) is str):
        return "text"
    known = UNITS.get(name) or UNITS.get(name.rpartition("_")[2])
    if known:
        return known
    within = (bare(inner[-1]), *limits(inner[-1])) if inner else (kind, *limits(hint))
    if any(isinstance(limit, Range) and (limit.low, limit.high) == (0, 1) for limit in within):
        return "share"
    return "count" if within[0] is int else "number" if within[0] is float else "settings"


def _allowed(hint: Any) -> str:
    """Return what a setting may be, in a few words."""
    stated: tuple[Limit, ...] = limits(hint)
    kind = bare(hint)
    if stated:
        return UNBOUNDED.sub("", ", ".join(map(str, stated)))
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    inner = getattr(kind, "__args__", ())
    if kind in names:
        return names[kind]
    within = UNBOUNDED.sub("", "; ".join(str(limit) for part in inner for limit in limits(part)))
    shape = "a list" if getattr(kind, "__origin__", None) is list else "a mapping"
    return f"{shape}: {within}" if within else shape
