"""Describe the settings of a phase as JSON Schema, from which a form can be drawn.

pydantic turns the phase's dataclass into a schema; conf/ gives every leaf its default, unit and
explanation, and the limits beside its field become `minimum`, `maximum` and `enum`. Settings that
the server assigns are left out; those that take names say of what in `x-takes`.
"""

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args, get_origin

from agent_forge.config import Phase
from agent_forge.config.compose import groups
from agent_forge.config.explain import Setting, settings
from agent_forge.config.limits import Filled, Limit, OneOf, Plugin, Range, limits
from agent_forge.config.overrides import bare, field_hints
from agent_forge.pipeline.catalogue import phase_named, phases
from agent_forge.server.client_settings import ASSIGNED, CHECKPOINTS, DATA


@cache
def schema(phase: str) -> dict[str, Any]:
    """Return the JSON Schema of a phase's settings. Raises ConfigError for an unknown phase."""
    from pydantic import TypeAdapter

    chosen = phase_named(phase)
    raw = TypeAdapter(chosen.config).json_schema()
    whole: dict[str, Any] = _inlined(raw, raw.get("$defs", {}))
    whole.pop("$defs", None)
    whole |= {"title": phase, "description": chosen.summary}
    explained = {
        row.key: row
        for row in settings(phase, chosen.config, {p.name: p.config for p in phases().values()})
    }
    _annotate(whole, chosen.config, "", explained)
    whole["x-groups"] = _groups_of(chosen)
    return whole


def summary(phase: Phase) -> dict[str, Any]:
    """Return what a list of phases says about one."""
    return {
        "name": phase.name,
        "order": phase.order,
        "summary": phase.summary,
        "promises_smaller": phase.promises_smaller,
        "several_processes": phase.several_processes,
        "writes_checkpoints": phase.writes,
    }


def _groups_of(phase: Phase) -> dict[str, list[str]]:
    """Return the config groups that are parts of a phase's settings, with their options."""
    names = field_hints(phase.config)
    return {group: options for group, options in groups().items() if group in names}


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:
    """Return a schema without references: a part that is used twice has two sets of defaults."""
    if isinstance(node, dict):
        if "$ref" in node:
            inner = copy.deepcopy(definitions[node["$ref"].rpartition("/")[2]])
            return _inlined(inner, definitions)
        return {key: _inlined(value, definitions) for key, value in node.items()}
    return [_inlined(one, definitions) for one in node] if isinstance(node, list) else node


def _annotate(node: dict[str, Any], kind: type, prefix: str, rows: Mapping[str, Setting]) -> None:
    """Lay defaults, units, explanations and limits over the properties of one dataclass."""
    node.pop("required", None)  # conf/ has a default for everything
    node["additionalProperties"] = False
    for name, hint in field_hints(kind).items():
        key, part = f"{prefix}{name}", node["properties"][name]
        if any(key == end or key.endswith(f".{end}") for end in ASSIGNED):
            del node["properties"][name]
            continue
        part["title"] = name.replace("_", " ").capitalize()
        if part.get("type") == "object" and "properties" in part:
            _annotate(part, bare(hint), f"{key}.", rows)
            continue
        part.update(_limits(hint))
        _explain(part, key, rows)
        if key in CHECKPOINTS:
            part["x-takes"] = "checkpoint id"
        elif key in DATA:
            part["x-takes"] = "data source"


def _explain(part: dict[str, Any], key: str, rows: Mapping[str, Setting]) -> None:
    """Add what conf/ says of one setting; a mapping's defaults stand below its key."""
    row = rows.get(key)
    below = {name: one for name, one in rows.items() if name.startswith(f"{key}.")}
    if row is None and not below:
        return
    first = row or next(iter(below.values()))
    part["default"] = (
        row.default if row else {name[len(key) + 1 :]: one.default for name, one in below.items()}
    )
    part["description"] = first.explanation
    part["x-unit"], part["x-allowed"], part["x-expert"] = first.unit, first.allowed, first.expert


def _limits(hint: Any) -> dict[str, Any]:
    """Return the limits beside a type in JSON Schema's words."""
    words: dict[str, Any] = {}
    for limit in limits(hint):
        words |= dict(_words(limit))
    kind = bare(hint)
    if get_origin(kind) is list and (inner := _limits(get_args(kind)[0])):
        words["items"] = {"type": _json_type(bare(get_args(kind)[0])), **inner}
    if get_origin(kind) is dict:
        names, values = get_args(kind)
        if "enum" in (allowed := _limits(names)):
            words["propertyNames"] = {"enum": allowed["enum"]}
        if inner := _limits(values):
            words["additionalProperties"] = {"type": _json_type(bare(values)), **inner}
    return words


def _words(limit: Limit) -> Iterator[tuple[str, Any]]:
    if isinstance(limit, Range):
        yield ("exclusiveMinimum" if limit.above else "minimum"), limit.low
        yield ("exclusiveMaximum" if limit.below else "maximum"), limit.high
    elif isinstance(limit, OneOf):
        yield "enum", list(limit.names)
    elif isinstance(limit, Plugin):
        yield "enum", limit.known()
    elif isinstance(limit, Filled):
        yield "minLength", 1


def _json_type(kind: Any) -> str:
    return {bool: "boolean", int: "integer", float: "number"}.get(kind, "string")
