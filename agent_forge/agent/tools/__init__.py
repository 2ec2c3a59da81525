"""Built-in tools: one file per tool, loaded by its name.

A tool here is a module with NAME, DESCRIPTION, PARAMETERS (JSON schema of its arguments) and
`run(arguments, context) -> str`; DESTRUCTIVE = True marks one that changes something outside. The
names below are what such a file needs.
"""

from agent_forge.agent.tool import Result, Tool, ToolContext, ToolError
from agent_forge.agent.tool_sources.builtin import PACKAGE
from agent_forge.agent.toolbox import Toolbox

__all__ = ["PACKAGE", "Result", "Tool", "ToolContext", "ToolError", "Toolbox"]
