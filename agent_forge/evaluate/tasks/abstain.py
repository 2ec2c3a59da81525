"""Call or not? Questions that an offered tool answers, and as many that none answers.

Only the decision counts, not the call's arguments, so that a model that never calls and one that
always calls are both at chance. The kinds "no tool fits" and "a tool fits" are scored apart; the
first is the abstention. Tools are generated schemas of the split.
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
    name="abstain",
    version=1,
    metric="right decisions to call or not",
    higher_is_better=True,
    chance=0.5,
    by_default=False,
    calls=True,
)
FITS, NONE_FITS = "a tool fits", "no tool fits"
ROWS_PER_ITEM = 4  # rows of all kinds that are drawn per item, so that both kinds suffice
MAX_NEW_TOKENS = 64


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return `n` distinct generated rows of the split, of both kinds in turn."""
    rows = schemas.rows(ROWS_PER_ITEM * n, split, seed_for(context.seed, "evaluate", "abstain"))
    fitting = [row for row in rows if row["kind"] in ("single", "multiple")]
    others = [row for row in rows if row["kind"] == "none"]
    chosen: list[dict[str, Any]] = []
    while len(chosen) < n and (fitting or others):
        none_next = bool(others) and (len(chosen) % 2 == 0 or not fitting)
        row = (others if none_next else fitting).pop()
        chosen.append({**row, "kind": NONE_FITS if none_next else FITS})
    return chosen


def is_right(row: Mapping[str, Any], text: str, calls: "list[Call] | None") -> bool:
    """Return whether a reply calls a tool where one fits, and none where none fits."""
    del text
    # A call that is broken or cut off is still a decision to call.
    called = calls is None or bool(calls)
    return called == (row["kind"] == FITS)


score = partial(calling.score_replies, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)
