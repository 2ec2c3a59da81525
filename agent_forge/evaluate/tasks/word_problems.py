"""Word problems of everyday life in two steps, answered by running the calculator.

One call with the whole expression is right, and so are two calls, one per step. What counts is that
the calculator really computed the number that the problem asks for, and that the reply says it. A
call that only repeats a number (`{"expression": "31"}`) computes nothing. The kinds are sorts of
expression, and problems that tell a number too many.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import word_problems
from agent_forge.evaluate.engine import asked, evaluating
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from agent_forge.agent import Turn

TASK = Task(
    name="word_problems",
    version=1,
    metric="right answers by right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 64
MAX_ROUNDS = 3  # two calls, then the answer
OPERATION = re.compile(r"[\d)]\s*[-+*/%^×·÷−–]")
NUMBER = re.compile(r"(?<!\d)-?\d[\d,]*(?:\.\d+)?")


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct problems of the split, in words that training does not have."""
    return word_problems.rows(n, split, seed_for(context.seed, "evaluate", TASK.name))


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the right answer by calls that ran, and weight 1."""
    from agent_forge import agent

    questions = [asked(row["messages"]) for row in items]
    limits = context.turn_limits(MAX_ROUNDS, MAX_NEW_TOKENS)
    with evaluating(model):
        turns = agent.answer_turns(model, tokenizer, questions, ["calculator"], limits)
    return of_weight_one(
        [float(is_right(row, turn)) for row, turn in zip(items, turns, strict=True)]
    )


def is_right(row: Mapping[str, Any], turn: "Turn") -> bool:
    """Return whether a turn computed a problem's result by the calculator, and says it."""
    computed = any(
        one.text == row["result"] and not one.error and _computes(one.call) for one in turn.results
    )
    numbers = {number.replace(",", "") for number in NUMBER.findall(turn.text)}
    return turn.finished and computed and row["result"] in numbers


def _computes(call: Any) -> bool:
    """Return whether a call asks the calculator for more than one number."""
    expression = str(getattr(call, "arguments", {}).get("expression", ""))
    return getattr(call, "name", "") == "calculator" and bool(OPERATION.search(expression))
