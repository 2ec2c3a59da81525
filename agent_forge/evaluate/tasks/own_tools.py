"""The user's own tools (`tools=[…]`), end to end, on the user's own questions (`eval.rows`).

A row's calls and answer are the measure: its expected calls are run, the model answers with tools
that really run, and an item is right when the same tools ran with the same results and the reply
says them. A row whose answer calls nothing is right when nothing was called. The tools of a row are
listed only where the row lists them, so rows without a listing show what is in the weights.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError, DataError
from agent_forge.evaluate.engine import evaluating
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import own_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from agent_forge.agent import Call, Result, Toolbox, Turn

TASK = Task(
    name="own_tools",
    version=1,
    metric="right answers by right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 128
MAX_ROUNDS = 3
LONGEST_ANSWER = 160  # characters of a result that a reply has to say
LEAVES = 6  # entries of a structured result that a reply has to say


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` distinct rows. Raises ConfigError without tools or without rows."""
    if not context.tools:
        raise ConfigError("task 'own_tools' runs your own tools: name them, tools=[my_tools.py]")
    return own_rows.items(split, n, context)


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 for the right answer by the right calls, and weight 1."""
    from agent_forge import agent

    box = agent.Toolbox(agent.load_tools(list(context.tools)))
    prompts = [question_of(row) for row in items]
    with evaluating(model):
        turns = agent.answer_turns(
            model, tokenizer, prompts, box,
            context.turn_limits(MAX_ROUNDS, MAX_NEW_TOKENS),
        )  # fmt: skip
    right = [float(is_right(row, turn, box)) for row, turn in zip(items, turns, strict=True)]
    return of_weight_one(right)


def question_of(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the turns up to the user's last one: the model makes the calls itself."""
    last = max(i for i, turn in enumerate(row["messages"]) if turn["role"] == "user")
    return list(row["messages"][: last + 1])


def is_right(row: Mapping[str, Any], turn: "Turn", box: "Toolbox") -> bool:
    """Return whether a turn answers a row."""
    from agent_forge import agent

    count = len(question_of(row))
    expected = [
        call
        for message in row["messages"][count:]
        if message["role"] == "assistant"
        for call in agent.parse_calls(message["content"])
    ]
    return same_results(expected, turn, box)


def same_results(expected: "Sequence[Call]", turn: "Turn", box: "Toolbox") -> bool:
    """Return whether the turn ran the expected tools with the same results, and says them.

    Raises DataError where an expected call itself fails, for then the row is wrong.
    """
    if not expected:
        return turn.finished and not turn.results
    due = [box.run(call) for call in expected]
    for result in due:
        if result.error:
            raise DataError(f"eval.rows: an expected call cannot run: {result.text}")
    ran = [one for one in turn.results if not one.error]
    if _pairs(ran) != _pairs(due):
        return False
    return turn.finished and says(turn.text, [result.text for result in due])


def _pairs(results: "Sequence[Result]") -> Counter[tuple[str, str]]:
    return Counter((getattr(one.call, "name", ""), one.text) for one in results)


def says(text: str, results: Sequence[str]) -> bool:
    """Return whether a text holds each result, or the first entries of a structured one.

    Case, spaces and the last full stop do not count; of a long result its beginning is enough.
    """
    said = _plain(text)
    return all(_plain(part) in said for result in results for part in _parts(result))


def _parts(result: str) -> list[str]:
    try:
        value = json.loads(result)
    except ValueError:
        value = None
    if isinstance(value, dict | list):
        return [leaf for _, leaf in list(leaves(value))[:LEAVES]]
    return [cut(result)]


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every plain value inside a structure."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, str(key).replace("_", " "))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


def cut(text: str) -> str:
    """Return the beginning of a text as one line of whole words, or of one word that is longer."""
    line = " ".join(text.split())
    if len(line) <= LONGEST_ANSWER:
        return line
    return line[:LONGEST_ANSWER].rpartition(" ")[0] or line[:LONGEST_ANSWER]


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".!? ").casefold()
