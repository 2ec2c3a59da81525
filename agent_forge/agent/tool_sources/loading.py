"""Turn the names of tool sources into `Tool`s: see the list in the package's docstring."""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agent_forge.agent.arguments import check_schema
from agent_forge.agent.tool import Tool
from agent_forge.agent.tool_sources.builtin import builtin_names, builtin_tool
from agent_forge.core.errors import ConfigError, DataError, did_you_mean

SUFFIXES = (".py", ".json", ".yaml", ".yml")
MAX_BYTES = 16 * 2**20


def load_tools(sources: Sequence[str], stack: ExitStack | None = None) -> list[Tool]:
    """Return the tools of `sources`, in order. Python files are run and servers are started.

    stack: closes the connections to servers; without it they stay open until the process ends.
    Raises ConfigError for an unknown name, a schema that is not one, and two tools of one name;
    DataError for a file that cannot be read.
    """
    tools: dict[str, Tool] = {}
    for source in sources:
        for tool in _load(source.strip(), stack):
            other = tools.get(tool.name)
            if other is not None and other != tool:
                raise ConfigError(
                    f"two tools are named '{tool.name}': of {other.source} and of {tool.source}; "
                    "rename one"
                )
            if tool.source.kind != "builtin":
                check_schema(tool.name, tool.parameters)
            tools[tool.name] = tool
    return list(tools.values())


def _load(source: str, stack: ExitStack | None) -> list[Tool]:
    """Return the tools of one source."""
    if source.startswith("mcp:"):
        from agent_forge.agent.tool_sources.mcp_server import server_tools

        return server_tools(source.removeprefix("mcp:").strip(), stack)
    path = Path(source).expanduser()
    if path.suffix not in SUFFIXES:
        return [builtin_tool(source)] if source in builtin_names() else _unknown(source)
    content = read_bytes(path)
    digest = hashlib.sha256(content).hexdigest()
    if path.suffix == ".py":
        from agent_forge.agent.tool_sources.python_file import file_tools

        return file_tools(path, digest)
    document = _document(path, content)
    if isinstance(document, dict) and "mcpServers" in document:
        from agent_forge.agent.tool_sources.mcp_server import configured_tools

        return configured_tools(document, path, stack)
    if isinstance(document, dict) and ("openapi" in document or "swagger" in document):
        from agent_forge.agent.tool_sources.openapi import operation_tools

        return operation_tools(document, path, digest)
    from agent_forge.agent.tool_sources.schema_file import schema_tools

    return schema_tools(document, path, digest)


def read_bytes(path: Path) -> bytes:
    """Return a file of tools. Raises DataError where it cannot be read or is too large."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read the tools of {path}: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise DataError(f"{path} has more than {MAX_BYTES:,} bytes; a file of tools is smaller")
    return content


def _document(path: Path, content: bytes) -> Any:
    """Return a JSON or YAML file as plain values."""
    import yaml

    try:
        if path.suffix == ".json":
            return json.loads(content)
        return yaml.safe_load(content)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not {path.suffix[1:].upper()}: {reason[:200]}") from None


def _unknown(source: str) -> list[Tool]:
    known = builtin_names()
    raise ConfigError(
        f"no tool '{source}'{did_you_mean(source, known)}; built in: {', '.join(known)}; "
        f"or a file ({', '.join(SUFFIXES)}), or mcp:COMMAND, or mcp:URL"
    )
