"""Search real documents for words: an index on this machine (BM25), or a configured endpoint."""

from typing import Any

from agent_forge.agent.tools import ToolContext, ToolError

NAME = "search"
DESCRIPTION = "Search the documents on this machine for words."
PARAMETERS = {
    "type": "object",
    "properties": {
        "query": {"type": "string", "description": "words to look for"},
        "count": {"type": "integer", "description": "how many passages, 1 to 10 (3 when left out)"},
    },
    "required": ["query"],
}


def run(arguments: dict[str, Any], context: ToolContext) -> str:
    """Return passages with their sources, best first, one paragraph each.

    Raises ToolError without documents.
    """
    if context.documents is None or not len(context.documents):
        raise ToolError("there is no document index; build one with `forge index` and name it")
    passages = context.documents.search(
        arguments["query"], min(max(arguments.get("count", 3), 1), 10)
    )
    return "\n\n".join(passage.cited() for passage in passages) or "nothing found"
