"""Conversations of several turns with simulated services: the leaderboard's set multi-turn base.

Needs bfcl-eval, whose services run here (`evaluate.bfcl_environment`). A conversation is right when
each of its turns is. Prompts list some twenty tools, so the context should hold 8,000 tokens.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agent_forge.core.seeds import numpy_generator
from agent_forge.data import bfcl
from agent_forge.evaluate.engine import evaluating
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(
    name="bfcl_multi_turn",
    version=1,
    metric="conversations with every turn right",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 256
MAX_ROUNDS = 20  # messages of the model in one turn, as many as the leaderboard allows


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` conversations of the split ("whole" for all), in a random order."""
    from agent_forge.evaluate import bfcl_environment

    every = [
        entry
        for entry in bfcl_environment.entries()
        if split == bfcl.WHOLE or bfcl.split_of_entry(entry["id"]) == split
    ]
    order = numpy_generator(context.seed, "evaluate", "bfcl_multi_turn", split).permutation(
        len(every)
    )
    return [{**every[i], "canonical": f"bfcl/{every[i]['id']}"} for i in order[:n]]


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> "NDArray[np.float64]":
    """Return (n, 2): 1 for a right conversation, and weight 1."""
    from agent_forge import agent

    def reply(talks: Any, boxes: Any) -> list[agent.Turn]:
        return agent.answer_turns(
            model, tokenizer, talks, boxes,
            context.turn_limits(MAX_ROUNDS, MAX_NEW_TOKENS),
        )  # fmt: skip

    with evaluating(model):
        right = played(items, reply)
    return of_weight_one(right)


def played(items: Sequence[Mapping[str, Any]], reply: Any) -> list[bool]:
    """Return which conversations are right.

    reply(conversations, toolboxes) gives the turn of each; a conversation ends at its first wrong
    turn.
    """
    from agent_forge.evaluate.bfcl_environment import Environment, Expected

    environments = [Environment(item) for item in items]
    expected = [Expected(item) for item in items]
    boxes = [one.toolbox(item["tools"]) for one, item in zip(environments, items, strict=True)]
    talks: list[list[Any]] = [
        [{"role": "system", "content": "", "tools": item["tools"]}] for item in items
    ]
    right = [True] * len(items)
    for turn in range(max((len(item["turns"]) for item in items), default=0)):
        active = [i for i, item in enumerate(items) if right[i] and turn < len(item["turns"])]
        for i in active:
            talks[i] += items[i]["turns"][turn]
        before = [len(environments[i].answers) for i in active]
        for i, count, answer in zip(
            active, before, reply([talks[i] for i in active], [boxes[i] for i in active]),
            strict=True,
        ):  # fmt: skip
            talks[i] += answer.messages
            ran = len(environments[i].answers) - count
            right[i] = expected[i].is_right(turn, environments[i], ran)
    return right
