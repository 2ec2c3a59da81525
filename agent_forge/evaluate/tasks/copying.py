"""Values copied into calls to the character, per kind of value: numbers, dates, identifiers, …

One tool with one argument is offered; an item is right when the call is exactly the expected one.
"""

from typing import Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import copying
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import schemas

TASK = Task(
    name="copying",
    version=1,
    metric="right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
score = schemas.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct rows of the split, the kinds of value in turn."""
    return copying.rows(n, split, seed_for(context.seed, "evaluate", "copying"))
