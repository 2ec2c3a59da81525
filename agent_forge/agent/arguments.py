"""Check the arguments of a call against the tool's JSON schema, with errors that a model can mend.

The `jsonschema` library judges (draft 2020-12, formats included). What small models often get wrong
and everybody understands is taken: an integer written as text, and a number where text is meant.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from agent_forge.agent.tool import ToolError
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.data.calls import Call

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError
    from jsonschema.protocols import Validator

_SHOWN = 60  # characters of a value in a message


def check_schema(name: str, schema: Mapping[str, Any]) -> None:
    """Raise ConfigError when a tool's `parameters` are not the JSON schema of an object."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "parameters"
        raise ConfigError(
            f"the schema of tool '{name}' is not JSON Schema: {where}: {error.message[:200]}"
        ) from None
    if schema.get("type", "object") != "object":
        raise ConfigError(
            f"the schema of tool '{name}' must have type object, got {schema['type']!r}; "
            "arguments have names"
        )


def check_arguments(call: Call, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments when they fit the schema; an integer written as text is taken.

    Raises ToolError whose message says what is wrong and what would fit.
    """
    properties: Mapping[str, Any] = schema.get("properties") or {}
    arguments = {
        name: _meant(value, properties.get(name)) for name, value in call.arguments.items()
    }
    if not (schema.get("additionalProperties") or schema.get("patternProperties")):
        for name in arguments:
            if name not in properties:
                known = ", ".join(properties) or "none"
                hint = did_you_mean(name, properties)
                raise ToolError(f"{call.name} has no argument '{name}'{hint}; known: {known}")
    errors = list(_validator(json.dumps(schema)).iter_errors(arguments))
    if errors:
        raise ToolError(_message(call.name, errors, properties))
    return arguments


def fits(name: str, value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a value fits the argument `name` of a tool's schema."""
    one = json.dumps({**schema, "required": []})
    return bool(_validator(one).is_valid({name: value}))


@lru_cache(maxsize=512)
def _validator(schema: str) -> "Validator":
    from jsonschema import Draft202012Validator

    return Draft202012Validator(
        json.loads(schema), format_checker=Draft202012Validator.FORMAT_CHECKER
    )


def _meant(value: Any, schema: Any) -> Any:
    """Return a value as the type that the schema names, where its text leaves no doubt."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "integer" and isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        return int(value) if len(value) < 100 else value
    if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _message(tool: str, errors: "list[ValidationError]", properties: Mapping[str, Any]) -> str:
    """Return the most telling error as one line: where, what, and what would fit."""
    from jsonschema.exceptions import best_match

    error = best_match(errors)
    assert error is not None
    where = _path(error)
    got = _clip(json.dumps(error.instance, ensure_ascii=False, default=str))
    rule, limit = error.validator, error.validator_value
    if rule == "required":
        missing = [name for name in limit if name not in error.instance]
        inside = f" in '{where}'" if where else ""
        known = ", ".join(properties if not where else error.schema.get("properties", limit))
        return f"{tool} needs '{missing[0]}'{inside}; its arguments: {known}"
    if rule == "type":
        names = " or ".join(limit if isinstance(limit, list) else [limit])
        return f"{tool}: '{where}' must be a JSON {names}, got {got}"
    if rule == "enum":
        near = did_you_mean(str(error.instance), map(str, limit))
        return f"{tool}: '{where}' must be one of {_clip(json.dumps(limit), 200)}, got {got}{near}"
    if rule == "additionalProperties" and isinstance(error.instance, Mapping):
        known = error.schema.get("properties", {})
        extra = next((name for name in error.instance if name not in known), "")
        return f"{tool}: '{where}' has no field '{extra}'{did_you_mean(extra, known)}"
    if rule in ("anyOf", "oneOf"):
        return f"{tool}: '{where}' must fit {_clip(json.dumps(limit), 200)}, got {got}"
    if rule == "format":
        return f"{tool}: '{where}' must be written as {limit}, got {got}"
    return f"{tool}: '{where}': {_clip(error.message, 200)}"


def _path(error: "ValidationError") -> str:
    """Return where in the arguments an error lies, as in `items[2].name`."""
    text = ""
    for part in error.absolute_path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _clip(text: str, limit: int = _SHOWN) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
