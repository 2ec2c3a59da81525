"""Keep a fact in the semantic memory; a newer fact about its subject supersedes it."""

from typing import Any

from agent_forge.agent.tools import ToolContext, ToolError

NAME = "remember"
DESCRIPTION = "Keep a fact for later. A new fact about the same subject replaces the old one."
PARAMETERS = {
    "type": "object",
    "properties": {
        "about": {"type": "string", "description": "the subject of the fact"},
        "fact": {"type": "string", "description": "what is to be kept"},
    },
    "required": ["fact"],
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return "stored". Raises ToolError when the agent has no memory or the fact is empty."""
    if context.memory is None:
        raise ToolError("this agent has no memory")
    if not arguments["fact"].strip():
        raise ToolError("the fact is empty")
    context.memory.semantic.remember(arguments["fact"], arguments.get("about", ""))
    return "stored"
