"""Generated tasks: one file each with `rows(count, split, seed)`; found by file name.

A row is {"messages": [...], "answer": str, "difficulty": 1..5, ...}. The split of a row is a hash of what is asked (numbers,
names), so no question of one split appears in another.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from agent_forge.core.seeds import numpy_generator
from agent_forge.data.documents import split_of


def draw_rows(
    task: str, count: int, split: str, seed: int, make: Callable[[np.random.Generator], tuple[str, dict[str, Any]]]
) -> list[dict[str, Any]]:
    """Return `count` rows of `split`: `make(generator)` gives (what is asked, row), kept when its split fits."""
    generator = numpy_generator(seed, "synthetic", task, split)
    rows: list[dict[str, Any]] = []
    while len(rows) < count:
        asked, row = make(generator)
        if split_of(f"{task}/{asked}") == split:
            rows.append(row)
    return rows


def chat(question: str, answer: str) -> list[dict[str, str]]:
    """Return a one-turn conversation."""
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
