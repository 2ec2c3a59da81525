"""Generated tasks: one file each with `rows(count, split, seed)`; found by file name.

A row is {"messages": [...], "answer": str, "difficulty": 1..5, "canonical": str, "cluster": str,
"kind": str, ...}. `canonical` is what the question asks, however it is worded: a commuted sum, or
facts in another order, is the same question. Its hash decides the split, so no question of one
split appears in another under other words. Held-out rows are distinct by it; training may meet a
question again, because how often it does is a matter of weights. Rows of one `cluster` depend on
each other (two operations on the same numbers), so intervals resample them together.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from agent_forge.core.seeds import numpy_generator
from agent_forge.data.documents import split_of

# Draws without a new question after which a split is taken to hold no more: a split of 8% with one
# question left in 200 is missed so often in less than one case in a thousand.
PATIENCE = 20_000
_log = logging.getLogger("agent_forge")


def draw_rows(
    task: str,
    count: int,
    split: str,
    seed: int,
    make: Callable[[np.random.Generator], tuple[str, dict[str, Any]]],
) -> list[dict[str, Any]]:
    """Return `count` rows of `split`: `make(generator)` gives (canonical question, row), taken when
    its split fits.

    Held-out rows are distinct; where the split has fewer than `count` questions, there are fewer,
    and a warning says so.
    """
    generator = numpy_generator(seed, "synthetic", task, split)
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    misses = 0
    while len(rows) < count and misses < PATIENCE:
        canonical, row = make(generator)
        misses += 1
        if split_of(f"{task}/{canonical}") != split or (split != "train" and canonical in seen):
            continue
        misses = 0
        seen.add(canonical)
        rows.append(
            {
                "canonical": f"{task}/{canonical}",
                "cluster": f"{task}/{canonical}",
                "kind": task,
                **row,
            }
        )
    if len(rows) < count:
        _log.warning(
            "%s: the %s split has %d distinct questions of this sort, not %d",
            task,
            split,
            len(rows),
            count,
        )
    return rows


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """Return a one-turn conversation."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
