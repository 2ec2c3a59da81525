"""The Berkeley Function Calling Leaderboard's sets, scored to the character.

The items are the same as in `bfcl`. Here "-5" is not "5", an integer is not 5.0, and a broken call
to answer an irrelevant question is wrong.
"""

from functools import partial

from agent_forge.evaluate import calling
from agent_forge.evaluate.task import Task
from agent_forge.evaluate.tasks import bfcl

TASK = Task(
    name="bfcl_strict",
    version=1,
    metric="right calls",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
    calls=True,
)
items = bfcl.items
score = partial(
    calling.score_replies,
    max_new_tokens=bfcl.MAX_NEW_TOKENS,
    is_right=partial(bfcl.is_right, strict=True),
)
