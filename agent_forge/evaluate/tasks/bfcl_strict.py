"""The Berkeley Function Calling Leaderboard's sets, scored to the character.

The items are the same as in `bfcl`. Here "-5" is not "5", an integer is not 5.0, and a broken call
to answer an irrelevant question is wrong.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.evaluate import calling
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import bfcl

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(
    name="bfcl_strict",
    version=1,
    metric="right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
items = bfcl.items


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the right calls, and weight 1."""
    return calling.score_replies(
        model, tokenizer, items, context, max_new_tokens=bfcl.MAX_NEW_TOKENS,
        is_right=partial(bfcl.is_right, strict=True),
    )  # fmt: skip
