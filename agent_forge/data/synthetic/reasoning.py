"""Arithmetic, comparison, logic and sequences with short worked answers, in five levels of difficulty.

The answer is the last word of the reply; what stands before it is the chain of thought.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

NAMES = ("Ann", "Ben", "Cal", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon")


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..5 fixes the level, None mixes them."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        level = difficulty or int(generator.integers(1, 6))
        kind = MAKERS[int(generator.integers(len(MAKERS)))]
        question, thought, answer = kind(generator, level)
        reply = f"{thought} {answer}" if thought else answer
        return question, {"messages": chat(question, reply), "answer": answer, "difficulty": level}

    return draw_rows("reasoning", count, split, seed, make)


def _sum(generator: np.random.Generator, level: int) -> tuple[str, str, str]:
    """Add `level + 1` one-digit numbers, showing the running total."""
    numbers = [int(n) for n in generator.integers(0, 10, level + 1)]
    total, steps = numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    return f"Add {' + '.join(map(str, numbers))}.", ", ".join(steps) + ". Answer:", str(total)


def _compare(generator: np.random.Generator, level: int) -> tuple[str, str, str]:
    """Find the largest of `level + 1` numbers."""
    numbers = [int(n) for n in generator.choice(100, level + 1, replace=False)]
    return f"Which is largest: {', '.join(map(str, numbers))}?", "Answer:", str(max(numbers))


def _order(generator: np.random.Generator, level: int) -> tuple[str, str, str]:
    """Follow a chain of "taller than" to its top."""
    people = [NAMES[i] for i in generator.permutation(len(NAMES))[: level + 1]]
    facts = [f"{a} is taller than {b}." for a, b in pairwise(people)]
    facts = [facts[i] for i in generator.permutation(len(facts))]
    return f"{' '.join(facts)} Who is tallest?", "Answer:", people[0]


def _sequence(generator: np.random.Generator, level: int) -> tuple[str, str, str]:
    """Continue an arithmetic sequence of step `1..level + 1`."""
    start, step = int(generator.integers(0, 20)), int(generator.integers(1, level + 2))
    shown = [start + step * i for i in range(4)]
    answer = start + 4 * step
    return f"What comes next: {', '.join(map(str, shown))}?", f"{shown[-1]}+{step}={answer}. Answer:", str(answer)


MAKERS = (_sum, _compare, _order, _sequence)
