"""Built-in tools: the modules of `agent/tools/`, each one `Tool` by its file's name."""

from collections.abc import Callable
from typing import Any

from agent_forge.agent.tool import Tool, ToolContext
from agent_forge.core import registry

PACKAGE = "agent_forge.agent.tools"


def builtin_names() -> list[str]:
    """Return the names of the built-in tools, without importing them."""
    return registry.names(PACKAGE)


def builtin_tool(name: str) -> Tool:
    """Return a built-in tool. Raises ConfigError that names the nearest known one."""
    module: Any = registry.load(PACKAGE, name, "tool")

    def run(arguments: dict[str, Any], context: ToolContext) -> str:
        function: Callable[[dict[str, Any], ToolContext], Any] = module.run
        return str(function(arguments, context))

    return Tool(
        module.NAME,
        module.DESCRIPTION,
        module.PARAMETERS,
        run,
        destructive=bool(getattr(module, "DESTRUCTIVE", False)),
    )
