"""AgentDojo's user tasks: is the reply's first call that of the package's own solution?

The suites come from the wheel of agentdojo, which is optional (`data.agentdojo`); a model has to
choose among all 11 to 28 tools of a suite, none of which is ever trained on. Nothing is run and
nothing is attacked. Values are compared as the Berkeley leaderboard does (text without case, spaces
and most punctuation), because solutions search with words of their own. A request may also be met
by other calls than those of the solution: these count as wrong, so the score is a lower bound.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from agent_forge.core.seeds import numpy_generator
from agent_forge.data import agentdojo
from agent_forge.evaluate import calling
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from agent_forge.agent import Call

TASK = Task(
    name="agentdojo",
    version=1,
    metric="first calls as in the solution",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
MAX_NEW_TOKENS = 256


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` entries of the split ("whole" for all), the suites mixed.

    Raises DataError without the package.
    """
    entries = agentdojo.entries(split)
    order = numpy_generator(context.seed, "evaluate", "agentdojo", split).permutation(len(entries))
    return [
        {**entries[i], "canonical": f"agentdojo/{entries[i]['id']}",
         "cluster": f"agentdojo/{entries[i]['id']}"}
        for i in order[:n]
    ]  # fmt: skip


def is_right(item: Mapping[str, Any], text: str, calls: "list[Call] | None") -> bool:
    """Return whether a reply begins with the expected call, and all its calls can be read."""
    del text
    if not calls:
        return False
    (expected,) = item["expected"]
    schema = calling.parameters_of(item["messages"])[expected["name"]]
    return calling.call_right(calls[0], expected, schema, strict=False)


score = partial(calling.score_replies, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)
