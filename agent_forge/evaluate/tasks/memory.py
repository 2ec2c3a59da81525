"""Key-value recall: the user states facts and asks for one; exact match of the generated value."""

from functools import partial
from typing import Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import memory
from agent_forge.evaluate.engine import exact_match
from agent_forge.evaluate.task import EvalContext, Task

# chance: a guess among the level + 1 codes in the conversation, for levels 1 to 5 evenly, is
# mean(1/2 .. 1/6).
TASK = Task(name="memory", version=2, metric="exact match", higher_is_better=True, chance=0.29)
score = partial(exact_match, max_new_tokens=8)


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split (fewer where it has fewer)."""
    return memory.rows(n, split, seed_for(context.seed, "evaluate", "memory"))
