"""Tool calls: generated conversations with tools that training never saw (`data.synthetic.schemas`).

Calls and answers of the assistant are scored. Tools that deal with one thing are a cluster.
"""

from typing import Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import schemas
from agent_forge.evaluate import domain
from agent_forge.evaluate.task import EvalContext

TASK = domain.domain_task("tool_calls")
score = domain.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` rows of the split: {"messages", "canonical", "cluster"}."""
    seed = seed_for(context.seed, "evaluate", "tool_calls")
    rows = [
        {key: row[key] for key in ("messages", "canonical", "cluster")}
        for row in schemas.rows(n, split, seed)
    ]
    return domain.chosen(TASK.name, rows, n, split, context)
