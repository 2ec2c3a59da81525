"""Rows of mixed difficulty: a lamp is flipped or kept, one to five times; is it on? Nothing is written down on the way.

One step is a look-up; k steps are a composition of k permutations. So a model that chooses its depth can save on easy
rows and should not on hard ones. Difficulty is the number of steps.
"""

from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey", "pink", "gold")
THINGS = ("lamp", "light", "fan", "bell", "radio", "heater", "pump", "engine", "screen", "clock")
STATES = ("off", "on")
ACTS = ("keep", "flip")
# Most steps of a row whose difficulty is not given: what a small model can learn beside other things.
USUAL_STEPS = 3
CHANCE = 1 / len(STATES)


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..5 fixes the number of steps, None draws 1, 2 or 3."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        level = difficulty or int(generator.integers(1, USUAL_STEPS + 1))
        name = f"{COLOURS[int(generator.integers(len(COLOURS)))]} {THINGS[int(generator.integers(len(THINGS)))]}"
        start, flips = int(generator.integers(2)), [int(n) for n in generator.integers(2, size=level)]
        question = f"The {name} is {STATES[start]}: {', '.join(ACTS[flip] for flip in flips)}."
        answer = STATES[(start + sum(flips)) % 2]
        return question, {"messages": chat(question, answer), "answer": answer, "difficulty": level}

    return draw_rows("mixed", count, split, seed, make)
