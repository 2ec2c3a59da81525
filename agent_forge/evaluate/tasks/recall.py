"""Recall over sessions: facts are told in conversations of their own, and asked for in a later one.

Only the agent's memory connects the sessions, so an answer has to have been stored by `remember`
and found by `recall`. Half of the items state the asked fact twice, with another value first: the
newer one counts. An item is right when the last session's answer ends with the value and a `recall`
ran in it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import memory
from agent_forge.evaluate.engine import evaluating, last_word
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from agent_forge.agent import Turn

TASK = Task(
    name="recall",
    version=1,
    metric="right answers from memory",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
)
TOOLS = ("remember", "recall")
FACTS = 2  # facts told before one of them is asked for
MAX_NEW_TOKENS = 48
MAX_ROUNDS = 3


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows with their `sessions` (user turns, one per session)."""
    rows = memory.rows(n, split, seed_for(context.seed, "evaluate", "recall"), FACTS - 1)
    return [{**row, "sessions": sessions(row, number)} for number, row in enumerate(rows)]


def sessions(row: Mapping[str, Any], number: int) -> list[str]:
    """Return what the user says in each session: the facts, an older value first, the question."""
    statements = []
    for key, code in row["pairs"]:
        sentence = f"the code of the {key} is"
        if f" {key}?" in row["question"] and number % 2:
            older = 10 + (int(code) - 10 + 37) % 90  # another code of two digits
            statements.append(f"Remember that {sentence} {older}.")
            statements.append(f"Remember that {sentence} now {code}.")
        else:
            statements.append(f"Remember that {sentence} {code}.")
    return [*statements, row["question"]]


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the newest value, recalled by a call, and weight 1."""
    from agent_forge import agent

    stores = [agent.Memory() for _ in items]
    boxes = [agent.Toolbox(TOOLS, agent.ToolContext(memory=store)) for store in stores]
    last: list[Turn] = [agent.Turn() for _ in items]
    limits = agent.TurnLimits(max_rounds=MAX_ROUNDS, decoding=context.decoding(MAX_NEW_TOKENS))
    with evaluating(model):
        for stage in range(max(len(row["sessions"]) for row in items)):
            active = [i for i, row in enumerate(items) if stage < len(row["sessions"])]
            turns = agent.answer_turns(
                model, tokenizer,
                [[{"role": "user", "content": items[i]["sessions"][stage]}] for i in active],
                [boxes[i] for i in active], limits,
            )  # fmt: skip
            for i, turn in zip(active, turns, strict=True):
                last[i] = turn
    for store in stores:
        store.close()
    right = [float(is_right(row, turn)) for row, turn in zip(items, last, strict=True)]
    return of_weight_one(right)


def is_right(row: Mapping[str, Any], turn: "Turn") -> bool:
    """Return whether the last session's answer is the newest value, and came from the memory."""
    recalled = any(
        getattr(result.call, "name", "") == "recall" and not result.error for result in turn.results
    )
    return turn.finished and recalled and last_word(turn.text) == row["answer"]
