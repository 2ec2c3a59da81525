"""Arithmetic, comparison, logic and sequences with short worked answers, in five levels.

The answer is the last word of the reply; what stands before it is the chain of thought. Canonical
are the numbers of a sum or a comparison in ascending order, and the people of an order by height,
whatever the order of the facts.
"""

from itertools import pairwise
from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

NAMES = (
    "Ann", "Ben", "Cal", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jon",
    "Kim", "Lea", "Max", "Ned", "Pam", "Ray", "Sue", "Tom", "Una", "Val",
)  # fmt: skip
TWO_DIGIT_SHARE = (
    # The share of sums of two or three numbers in which one number has two digits: sums of digits
    # alone are soon all seen.
    0.3
)


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..5 fixes the level, None mixes them."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        level = difficulty or int(generator.integers(1, 6))
        kind = MAKERS[int(generator.integers(len(MAKERS)))]
        canonical, question, thought, answer = kind(generator, level)
        row = {
            "messages": chat(question, f"{thought} {answer}"),
            "answer": answer,
            "difficulty": level,
        }
        return canonical, {**row, "kind": kind.__name__.removeprefix("_")}

    return draw_rows("reasoning", count, split, seed, make)


def _sum(generator: np.random.Generator, level: int) -> tuple[str, str, str, str]:
    """Add `level + 1` numbers of one digit (of two or three, sometimes one of two digits), showing
    the running total.
    """
    numbers = [int(n) for n in generator.integers(0, 10, level + 1)]
    if level <= 2 and generator.random() < TWO_DIGIT_SHARE:
        numbers[int(generator.integers(len(numbers)))] = int(generator.integers(10, 50))
    total, steps = numbers[0], []
    for number in numbers[1:]:
        steps.append(f"{total}+{number}={total + number}")
        total += number
    question, thought = f"Add {' + '.join(map(str, numbers))}.", ", ".join(steps) + ". Answer:"
    return f"sum {sorted(numbers)}", question, thought, str(total)


def _compare(generator: np.random.Generator, level: int) -> tuple[str, str, str, str]:
    """Find the largest of `level + 1` numbers."""
    numbers = [int(n) for n in generator.choice(100, level + 1, replace=False)]
    question = f"Which is largest: {', '.join(map(str, numbers))}?"
    return f"largest {sorted(numbers)}", question, "Answer:", str(max(numbers))


def _order(generator: np.random.Generator, level: int) -> tuple[str, str, str, str]:
    """Follow a chain of "taller than" to its top."""
    people = [NAMES[i] for i in generator.permutation(len(NAMES))[: level + 1]]
    facts = [f"{a} is taller than {b}." for a, b in pairwise(people)]
    facts = [facts[i] for i in generator.permutation(len(facts))]
    return f"tallest {people}", f"{' '.join(facts)} Who is tallest?", "Answer:", people[0]


def _sequence(generator: np.random.Generator, level: int) -> tuple[str, str, str, str]:
    """Continue an arithmetic sequence of step `1..2 * level`."""
    start, step = int(generator.integers(0, 100)), int(generator.integers(1, 2 * level + 1))
    shown = [start + step * i for i in range(4)]
    answer = start + 4 * step
    question = f"What comes next: {', '.join(map(str, shown))}?"
    return f"next {start} {step}", question, f"{shown[-1]}+{step}={answer}. Answer:", str(answer)


MAKERS = (_sum, _compare, _order, _sequence)
