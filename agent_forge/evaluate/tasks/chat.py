"""Chat: English conversations of chatterbot-corpus (BSD); the replies are scored.

The hash of a conversation decides its split. Conversations on one topic are a cluster.
"""

from typing import Any

from agent_forge.data.domains import conversations
from agent_forge.evaluate import domain
from agent_forge.evaluate.task import EvalContext

TASK = domain.domain_task("chat")
score = domain.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` conversations of the split: {"messages", "canonical", "cluster"}."""
    return domain.chosen(TASK.name, conversations(split), n, split, context)
