"""Exact match of generated answers to arithmetic, comparison, ordering and sequence questions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import reasoning
from agent_forge.evaluate.engine import exact_match
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# chance: half of the questions name level + 1 candidates, for levels 1 to 5 evenly; a guess scores
# .5 * mean(1/2 .. 1/6).
TASK = Task(name="reasoning", version=2, metric="exact match", higher_is_better=True, chance=0.145)
MAX_NEW_TOKENS = 56  # the longest worked sum has five steps of about nine tokens


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split (fewer where it has fewer)."""
    return reasoning.rows(n, split, seed_for(context.seed, "evaluate", "reasoning"))


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the right last word of the reply, and weight 1."""
    return exact_match(model, tokenizer, items, MAX_NEW_TOKENS, context)
