"""Fetch the passages that best answer a question, by BM25 and vectors fused."""

from typing import Any

from agent_forge.agent.tools import ToolContext, ToolError

NAME = "retrieve"
DESCRIPTION = "Fetch the passages of the document store that best fit a question."
PARAMETERS = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "the question, or words of it"},
        "count": {"type": "integer", "description": "how many passages, 1 to 10 (1 when left out)"},
    },
    "required": ["query"],
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return the best passages with their sources, one paragraph each.

    Raises ToolError when the store is empty.
    """
    if context.documents is None or not len(context.documents):
        raise ToolError("the document store is empty; build one with `forge index` and name it")
    passages = context.documents.retrieve(
        arguments["query"], min(max(arguments.get("count", 1), 1), 10)
    )
    return "\n\n".join(passage.cited() for passage in passages) or "nothing found"
