"""Exact match of generated answers to arithmetic, comparison, ordering and sequence questions."""

from functools import partial
from typing import Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import reasoning
from agent_forge.evaluate.engine import exact_match
from agent_forge.evaluate.task import EvalContext, Task

# chance: half of the questions name level + 1 candidates, for levels 1 to 5 evenly; a guess scores
# .5 * mean(1/2 .. 1/6).
TASK = Task(name="reasoning", version=2, metric="exact match", higher_is_better=True, chance=0.145)
# The longest worked sum has five steps of about nine tokens.
score = partial(exact_match, max_new_tokens=56)


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split (fewer where it has fewer)."""
    return reasoning.rows(n, split, seed_for(context.seed, "evaluate", "reasoning"))
