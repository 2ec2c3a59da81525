"""Calls of tools that were never seen: generated schemas of the split, scored to the character.

An item is right when the calls are exactly the expected ones (`evaluate.calling`, strict); where
none is right, when none is made, and a question that lacks an argument has to be answered by a
question. Nothing is run. The kinds (single, multiple, parallel, follow-up, missing, none) are
scored apart.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import schemas
from agent_forge.evaluate import calling
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from agent_forge.agent import Call

TASK = Task(
    name="schemas",
    version=1,
    metric="right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 160  # three calls of four arguments


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split."""
    return schemas.rows(n, split, seed_for(context.seed, "evaluate", "schemas"))


def is_right(row: Mapping[str, Any], text: str, calls: "list[Call] | None") -> bool:
    """Return whether a reply makes exactly the calls of a row."""
    if calls is None:
        return False
    if row["kind"] == "missing" and not text.rstrip().endswith("?"):
        return False
    expected = [calling.expected_call(call) for call in row["calls"]]
    return calling.calls_right(calls, expected, calling.parameters_of(row["messages"]))


score = partial(calling.score_replies, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)
