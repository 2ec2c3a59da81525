"""Hide facts of the semantic memory from every later recall."""

from typing import Any

from agent_forge.agent.tools import ToolContext, ToolError

NAME = "forget"
DESCRIPTION = "Forget what was remembered about a subject."
PARAMETERS = {
    "type": "object",
    "properties": {"about": {"type": "string", "description": "the subject, or the exact fact"}},
    "required": ["about"],
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return how many facts were hidden. Raises ToolError when the agent has no memory."""
    if context.memory is None:
        raise ToolError("this agent has no memory")
    return f"forgot {context.memory.semantic.forget(arguments['about'])}"
