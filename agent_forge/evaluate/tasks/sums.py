"""Sums of operands of 1 to 6 digits, answered by running the calculator: one kind per length.

The longer operand of an item has so many digits, the other one has as many or fewer. Scored as the
task `tools`, which has operands of up to 3 digits; here copying of longer numbers shows.
"""

from typing import Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import tools as rows_of_tools
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import tools

TASK = Task(
    name="sums",
    version=1,
    metric="right answers by right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
DIGITS = 6
score = tools.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct sums of the split, the lengths in turn (fewer where it has fewer)."""
    return rows_of_tools.sums(n, split, seed_for(context.seed, "evaluate", "sums"), DIGITS)
