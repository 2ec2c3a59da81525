"""Key-value recall: a list of facts, then a question about one of them.

Difficulty is the number of facts.

The same facts in another order, with the same question, are the same question.
"""

from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

KEYS = (
    "red box", "blue box", "green box", "old door", "new door", "big ship", "small ship",
    "north gate", "south gate", "east tower", "west tower", "first room", "last room", "iron chest",
    "gold chest", "stone bridge", "black horse", "white horse", "tall tree", "long road",
)  # fmt: skip


def facts(generator: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Return `count` distinct (key, two-digit code) pairs."""
    keys = [KEYS[i] for i in generator.permutation(len(KEYS))[:count]]
    return [(key, str(int(generator.integers(10, 100)))) for key in keys]


def fact_text(pairs: list[tuple[str, str]]) -> str:
    """Return the facts as sentences."""
    return " ".join(f"The code of the {key} is {code}." for key, code in pairs)


def question_text(key: str) -> str:
    """Return the question about one fact."""
    return f"What is the code of the {key}?"


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..5 is the number of facts less 1."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        level = difficulty or int(generator.integers(1, 6))
        pairs = facts(generator, level + 1)
        key, code = pairs[int(generator.integers(len(pairs)))]
        row = {
            "messages": chat(f"{fact_text(pairs)} {question_text(key)}", code),
            "answer": code,
            "difficulty": level,
            "facts": fact_text(pairs),
            "question": question_text(key),
            "pairs": pairs,
        }
        return f"{sorted(pairs)} {key}", row

    return draw_rows("memory", count, split, seed, make)
