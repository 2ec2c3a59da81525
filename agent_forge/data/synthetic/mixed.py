"""Rows of mixed difficulty: follow an object through swaps of cups, in one to five steps, without writing the steps down.

One swap is a look-up; k swaps are a composition of k permutations that do not commute, which needs k looks or depth. So
a model that chooses its depth can save on the easy rows and must not on the hard ones. Difficulty is the number of
swaps.
"""

from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

OBJECTS = (
    "ball", "coin", "ring", "key", "pea", "bean", "stone", "shell", "nut", "pearl", "bead", "seed", "pin", "cork",
    "card", "button",
)  # fmt: skip
CUPS = (1, 2, 3)
# Most swaps of a row whose difficulty is not given: what a small model can learn beside other things.
USUAL_SWAPS = 3
CHANCE = 1 / len(CUPS)


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..5 fixes the number of swaps, None draws 1, 2 or 3."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        level = difficulty or int(generator.integers(1, USUAL_SWAPS + 1))
        thing = OBJECTS[int(generator.integers(len(OBJECTS)))]
        place = start = int(generator.choice(CUPS))
        swaps = [tuple(int(cup) for cup in generator.permutation(CUPS)[:2]) for _ in range(level)]
        for one, other in swaps:
            place = {one: other, other: one}.get(place, place)
        listed = ", ".join(f"{one}{other}" for one, other in swaps)
        question = f"The {thing} is under cup {start}. Swap {listed}. Which cup?"
        return question, {"messages": chat(question, str(place)), "answer": str(place), "difficulty": level}

    return draw_rows("mixed", count, split, seed, make)
