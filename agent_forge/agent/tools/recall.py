"""Look facts up in the semantic memory."""

from typing import Any

from agent_forge.agent.tools import ToolContext, ToolError

NAME = "recall"
DESCRIPTION = "Look up what was remembered about a subject."
PARAMETERS = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "the subject, or words of the fact"},
        "count": {"type": "integer", "description": "how many facts, 1 to 10 (1 when left out)"},
    },
    "required": ["query"],
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return `subject: fact` lines, best first, or "nothing".

    Raises ToolError when the agent has no memory.
    """
    if context.memory is None:
        raise ToolError("this agent has no memory")
    facts = context.memory.semantic.recall(
        arguments["query"], min(max(arguments.get("count", 1), 1), 10)
    )
    return (
        "\n".join(f"{fact.about}: {fact.content}" if fact.about else fact.content for fact in facts)
        or "nothing"
    )
