"""Exact match of answers to questions that need a few steps (sums, products, cups, stories).

Models may think before they answer; the last word of the reply counts.
"""

from functools import partial
from typing import Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import rationales
from agent_forge.evaluate.engine import exact_match
from agent_forge.evaluate.task import EvalContext, Task

# chance: a quarter of the questions name three or four balls; numbers are not guessed.
TASK = Task(
    name="rationales",
    version=1,
    metric="exact match",
    higher_is_better=True,
    chance=0.073,
    by_default=False,
)
score = partial(exact_match, max_new_tokens=96)


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split."""
    return rationales.rows(n, split, seed_for(context.seed, "evaluate", "rationales"))
