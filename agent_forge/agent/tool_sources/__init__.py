"""Tools that a user brings, from what is named on a command line or in a setting `tools=[…]`.

    calculator                     a built-in tool, by its name
    my_tools.py                    Python functions: name, docstring and annotations are the schema
    tools.json, tools.yaml         JSON schemas, with an HTTP endpoint or without any code
    api.json, api.yaml             an OpenAPI 3 file: one tool per operation
    servers.json                   MCP servers, in the usual form {"mcpServers": {…}}
    mcp:npx -y @scope/server DIR   an MCP server that is started by this command
    mcp:http://127.0.0.1:8000/mcp  an MCP server over streamable HTTP

`load_tools` runs what it is told to: a Python file is executed, a server is started. So it only
gets what a person named, never the sources that a checkpoint mentions (`kept_tools` is for those).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_forge.agent.tool_sources.loading import load_tools
    from agent_forge.agent.tool_sources.manifest import kept_tools

_HOMES = {"kept_tools": "manifest", "load_tools": "loading"}

__all__ = ["kept_tools", "load_tools"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
