"""Values copied into calls to the character, per kind of value: numbers, dates, identifiers, …

One tool with one argument is offered; an item is right when the call is exactly the expected one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import copying
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import schemas

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(
    name="copying",
    version=1,
    metric="right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
)


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct rows of the split, the kinds of value in turn."""
    return copying.rows(n, split, seed_for(context.seed, "evaluate", "copying"))


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the right call, and weight 1."""
    return schemas.score(model, tokenizer, items, context)
