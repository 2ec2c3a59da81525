"""Rows of mixed difficulty: one-step and many-step questions side by side, for models that choose their depth."""

from typing import Any

from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data.synthetic import memory, reasoning


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows, half reasoning and half memory; `difficulty` None mixes level 1 and level 5 evenly."""
    levels = (difficulty,) if difficulty else (1, 5)
    parts: list[dict[str, Any]] = []
    for task in (reasoning, memory):
        for level in levels:
            share = -(-count // (2 * len(levels)))
            parts += task.rows(share, split, seed_for(seed, "mixed", level), difficulty=level)
    order = numpy_generator(seed, "synthetic", "mixed", split, "order").permutation(len(parts))
    return [parts[i] for i in order[:count]]
