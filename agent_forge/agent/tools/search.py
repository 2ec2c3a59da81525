"""Search an offline index of real documents by words (BM25) and return the best passages."""

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
    """Return passages, best first, one paragraph each. Raises ToolError without an index."""
    if context.documents is None or not len(context.documents):
        raise ToolError("there is no document index; name documents in the agent's settings")
    passages = context.documents.search(
        arguments["query"], min(max(arguments.get("count", 3), 1), 10)
    )
    return "\n\n".join(f"[{p.document}] {p.content}" for p in passages) or "nothing found"
