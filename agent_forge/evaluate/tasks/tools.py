"""Tool calls, scored by running them while the model answers.

An item is right when the final answer is the row's and the row's tool ran and answered; for rows
that need no tool, when none was called.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import tools
from agent_forge.evaluate.engine import asked, evaluating
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(
    name="tools",
    version=2,
    metric="right answers by right calls",
    higher_is_better=True,
    chance=0.0,
    calls=True,
)
MAX_NEW_TOKENS = 48
MAX_ROUNDS = 2  # a call, then the answer


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split (fewer where it has fewer)."""
    return tools.rows(n, split, seed_for(context.seed, "evaluate", "tools"))


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the right answer by the right call, and weight 1."""
    from agent_forge import agent

    questions = [asked(row["messages"]) for row in items]
    with evaluating(model):
        turns = agent.answer_turns(
            model,
            tokenizer,
            questions,
            ["calculator"],
            context.turn_limits(MAX_ROUNDS, MAX_NEW_TOKENS),
        )
    right = [float(is_right(row, turn.messages)) for row, turn in zip(items, turns, strict=True)]
    return of_weight_one(right)


def is_right(row: Mapping[str, Any], messages: Sequence[Mapping[str, str]]) -> bool:
    """Return whether a conversation ends in the right answer, reached by the right call."""
    from agent_forge import agent

    if (
        not messages
        or messages[-1]["role"] != "assistant"
        or messages[-1]["content"].strip() != row["answer"]
    ):
        return False
    called = [
        call.name
        for message, after in itertools.pairwise(messages)
        if message["role"] == "assistant" and after["role"] == "tool"
        for call in agent.parse_calls(message["content"])
    ]
    return row["tool"] in called if row["tool"] else not called
