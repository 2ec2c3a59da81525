"""Rows of mixed difficulty: a thing goes through one to five doors of a house; in which room is it?

The answer comes without written steps. One door is a look-up; k doors are a composition of k
permutations. The two doors generate every permutation of the six rooms, so no count of them gives
the answer: each step needs the one before. So a model that chooses its depth can save on easy rows
and should not on hard ones. The start of a row narrows an easy answer to two rooms of six, and that
is where learning sets in: of a task whose parts say nothing one by one (parity) small models see
nothing for long. Difficulty is the number of doors. Doors do not commute, so a question is
canonical as it stands. There are only six rooms, so held-out questions are of other things, not of
other ways through the house; rows of one way are a cluster.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

COLOURS = ("red", "blue", "green", "white", "black", "yellow", "brown", "grey", "pink", "gold")
THINGS = ("lamp", "light", "fan", "bell", "radio", "heater", "pump", "engine", "screen", "clock")
ROOMS = ("A", "B", "C", "D", "E", "F")
# Door -> the room that it leads to from each room. No door stays, and no two doors of a room lead
# to the same one.
DOORS = {"left": (5, 2, 4, 1, 3, 0), "right": (4, 5, 1, 0, 2, 3)}
# Most doors of a row whose difficulty is not given: as many as a small model learns beside other
# things.
USUAL_STEPS = 4
CHANCE = 1 / len(ROOMS)


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..5 fixes the number of doors, None draws 1 to
    4.
    """

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        level = difficulty or int(generator.integers(1, USUAL_STEPS + 1))
        colour = COLOURS[int(generator.integers(len(COLOURS)))]
        name = f"{colour} {THINGS[int(generator.integers(len(THINGS)))]}"
        start, names = int(generator.integers(len(ROOMS))), tuple(DOORS)
        taken = [names[int(n)] for n in generator.integers(len(names), size=level)]
        question = f"The {name} is in {ROOMS[start]}: {', '.join(taken)}."
        answer = ROOMS[passed(start, taken)]
        row = {"messages": chat(question, answer), "answer": answer, "difficulty": level}
        return question, {**row, "cluster": f"mixed/{start} {' '.join(taken)}"}

    return draw_rows("mixed", count, split, seed, make)


def passed(room: int, doors: Sequence[str]) -> int:
    """Return the number of the room behind `doors`, taken in their order."""
    for door in doors:
        room = DOORS[door][room]
    return room
