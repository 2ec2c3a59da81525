"""The Berkeley Function Calling Leaderboard, compared as its own checker does.

The sets come from the wheel of bfcl-eval, which is optional (`data.bfcl`). A fifth of the entries
is for training, by id; `--split test` scores most of the others, and `--split whole` all of them,
for models that were trained on none. Nothing is run; the kinds are the leaderboard's categories.
`bfcl_strict` scores the same replies to the character.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agent_forge.core.seeds import numpy_generator
from agent_forge.data import bfcl
from agent_forge.data.schemas.canonical import question_key
from agent_forge.evaluate import calling
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from agent_forge.agent import Call

TASK = Task(
    name="bfcl",
    version=1,
    metric="right calls as the leaderboard compares them",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 256


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` entries of the split ("whole" for all), the categories mixed.

    Raises DataError without the package.
    """
    entries = bfcl.entries(split)
    order = numpy_generator(context.seed, "evaluate", "bfcl", split).permutation(len(entries))
    return [
        {**entries[i], "canonical": f"bfcl/{entries[i]['id']}",
         "cluster": f"bfcl/{question_key(entries[i]['messages'])}"}
        for i in order[:n]
    ]  # fmt: skip


def is_right(
    item: Mapping[str, Any], text: str, calls: "list[Call] | None", *, strict: bool = False
) -> bool:
    """Return whether a reply's calls are right; an irrelevant question is right without a call."""
    del text
    if item["kind"] == "irrelevance":
        return calls is None or not calls if not strict else calls == []
    return calls is not None and calling.calls_right(
        calls, item["expected"], calling.parameters_of(item["messages"]), strict=strict
    )


score = partial(calling.score_replies, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)
