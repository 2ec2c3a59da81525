"""Tools from a JSON or YAML file of schemas, with an HTTP endpoint or without any implementation.

Read are a list of tools, one tool, and `{"tools": […]}`, each in the form of OpenAI
(`{"type": "function", "function": {…}}`), of MCP (`inputSchema`) or plain (`parameters`). A tool
with an `endpoint` is run by sending its arguments there as JSON; without one it is never run: its
calls are trained and scored. `${NAME}` in an endpoint or header is read from the environment.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_forge.agent.tool import ANY_ARGUMENTS, Run, Tool, ToolContext, ToolSource
from agent_forge.agent.tool_sources.http import Endpoint, send
from agent_forge.agent.tool_sources.schemas import plain_schema
from agent_forge.core.errors import ConfigError, did_you_mean

SCHEMAS = ("parameters", "inputSchema", "input_schema")
TOOL_KEYS = (
    "name", "description", "destructive", "endpoint", "method", "headers",
    "annotations", "strict", "title", "outputSchema", "type", *SCHEMAS,
)  # fmt: skip
SHARED_KEYS = ("endpoint", "method", "headers")
FILE_KEYS = ("tools", *SHARED_KEYS)


def schema_tools(document: Any, path: Path, digest: str) -> list[Tool]:
    """Return the tools of a parsed file. Raises ConfigError that names the entry."""
    source = ToolSource("schema", str(path), digest)
    shared: dict[str, Any] = {}
    if isinstance(document, Mapping) and "tools" in document:
        _refuse_unknown(str(path), document, FILE_KEYS)
        shared = {key: document[key] for key in SHARED_KEYS if key in document}
        document = document["tools"]
    entries = document if isinstance(document, list) else [document]
    if not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise ConfigError(f"{path} must hold tools: objects with a name and parameters")
    return [
        _tool(entry, shared, source, f"{path}, tool {number}")
        for number, entry in enumerate(entries, start=1)
    ]


def _tool(
    entry: Mapping[str, Any], shared: Mapping[str, Any], source: ToolSource, where: str
) -> Tool:
    inner = entry.get("function")
    fields = {**entry, **inner} if isinstance(inner, Mapping) else dict(entry)
    fields.pop("function", None)
    _refuse_unknown(where, fields, TOOL_KEYS)
    name = fields.get("name")
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{where}: a tool needs a name, got {name!r}")
    schemas = [fields[key] for key in SCHEMAS if key in fields]
    if len(schemas) > 1:
        raise ConfigError(f"{where} ({name}): keep one of {', '.join(SCHEMAS)}")
    parameters = schemas[0] if schemas else ANY_ARGUMENTS
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"{where} ({name}): parameters must be a JSON schema")
    return Tool(
        name,
        str(fields.get("description") or ""),
        plain_schema(parameters, parameters, f"{where} ({name})"),
        _runner({**shared, **{key: fields[key] for key in SHARED_KEYS if key in fields}}, where),
        destructive=bool(fields.get("destructive", _hint(fields))),
        source=source,
    )


def _hint(fields: Mapping[str, Any]) -> bool:
    """Return whether MCP's annotations call the tool destructive."""
    annotations = fields.get("annotations")
    return isinstance(annotations, Mapping) and annotations.get("destructiveHint") is True


def _runner(fields: Mapping[str, Any], where: str) -> Run | None:
    """Return what sends a call to its endpoint, or None without one."""
    if not fields.get("endpoint"):
        return None
    endpoint = Endpoint.read(fields, where)

    def run(arguments: dict[str, Any], context: ToolContext) -> str:
        return send(endpoint, arguments, context)

    return run


def _refuse_unknown(where: str, fields: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in fields:
        if key not in known:
            raise ConfigError(
                f"{where}: '{key}' is not known{did_you_mean(key, known)}; "
                f"known: {', '.join(known)}"
            )
