"""The user's own rows (`eval.rows`), in any dialect of `data.rows`: the last answer of each row.

An item is right when the reply makes the same calls as the row's answer, to the character, or says
the same words where the row calls nothing (without case and punctuation). Tools that a row lists
are offered; nothing is run. Every row is scored, whatever the split, because these are held out by
their owner.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import rows as raw
from agent_forge.data.schemas.canonical import text_key
from agent_forge.evaluate import calling
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from agent_forge.agent import Call

TASK = Task(
    name="own_rows",
    version=1,
    metric="the same calls, or the same words",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 256


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` distinct rows in a random order.

    Raises ConfigError without eval.rows, DataError for rows that cannot be read.
    """
    if not context.rows:
        raise ConfigError("task 'own_rows' scores your own rows: name them, eval.rows=[mine.jsonl]")
    del split
    every: dict[str, dict[str, Any]] = {}
    for name in context.rows:
        for _, turns in raw.conversations(
            name, encoding=context.data.encoding, ignored=context.data.ignore_keys
        ):
            last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
            if last > 0:
                item = {"messages": turns[: last + 1], "prompt_turns": last}
                every.setdefault(raw.key_of(turns), {**item, "canonical": raw.key_of(turns)})
    rows = [every[key] for key in sorted(every)]
    order = numpy_generator(context.seed, "evaluate", "own_rows").permutation(len(rows))
    return [rows[i] for i in order[:n]]


def is_right(row: Mapping[str, Any], text: str, calls: "list[Call] | None") -> bool:
    """Return whether a reply is the row's answer."""
    from agent_forge import agent

    answer = str(row["messages"][row["prompt_turns"]]["content"])
    expected = [
        calling.expected_call({"name": call.name, "arguments": call.arguments})
        for call in agent.parse_calls(answer)
    ]
    if expected:
        parameters = calling.parameters_of(row["messages"])
        return calls is not None and calling.calls_right(calls, expected, parameters)
    return calls == [] and text_key(text) == text_key(answer)


score = partial(calling.score_replies, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)
