"""Questions that need a few steps, with the steps as a thought between tags and the answer after.

Sums and differences of three or four numbers, products by parts, balls under cups that are swapped,
and small stories. Each step of a thought is an equation or a state that follows from the one before
it, so a thought is verified by working it again (the tests do). A row has also "thought"; `plain`
is the same row without it, for a control that learns answers alone.
"""

from typing import Any

import numpy as np

from agent_forge.data.calls import THINK_CLOSE, THINK_OPEN
from agent_forge.data.synthetic import chat, draw_rows

BALLS = ("red", "green", "blue", "white", "black")
CUPS = "ABCDE"
NAMES = ("Ann", "Ben", "Eve", "Hal", "Ida", "Jon", "Kim", "Max")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
Parts = tuple[str, str, list[str], str]  # canonical, question, steps, answer


def rows(count: int, split: str, seed: int) -> list[dict[str, Any]]:
    """Return `count` rows of `split`, the kinds mixed evenly."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        kind = MAKERS[int(generator.integers(len(MAKERS)))]
        canonical, question, steps, answer = kind(generator)
        thought = "; ".join(steps)
        return canonical, {
            "messages": chat(question, f"{THINK_OPEN}{thought}{THINK_CLOSE} {answer}"),
            "thought": thought, "answer": answer, "difficulty": min(len(steps), 5),
            "kind": kind.__name__.removeprefix("_"),
        }  # fmt: skip

    return draw_rows("rationales", count, split, seed, make)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose reply is the answer alone."""
    question = row["messages"][0]["content"]
    return {**row, "messages": chat(question, row["answer"]), "thought": ""}


def _sums(generator: np.random.Generator) -> Parts:
    """Three or four numbers below 60, added and subtracted without going below 0."""
    total = int(generator.integers(10, 60))
    expression, steps = str(total), []
    for _ in range(int(generator.integers(2, 4))):
        number = int(generator.integers(2, 60))
        sign = "-" if number <= total and generator.random() < 0.5 else "+"
        after = total - number if sign == "-" else total + number
        steps.append(f"{total}{sign}{number}={after}")
        expression += f" {sign} {number}"
        total = after
    return f"sums {expression}", f"What is {expression}?", steps, str(total)


def _products(generator: np.random.Generator) -> Parts:
    """A number of two digits times one of one digit, by tens and ones."""
    one, other = int(generator.integers(11, 100)), int(generator.integers(3, 10))
    tens, ones = 10 * (one // 10), one % 10
    steps = [
        f"{tens}*{other}={tens * other}",
        f"{ones}*{other}={ones * other}",
        f"{tens * other}+{ones * other}={one * other}",
    ]
    return f"products {one} {other}", f"What is {one} * {other}?", steps, str(one * other)


def _cups(generator: np.random.Generator) -> Parts:
    """Balls under three or four cups, two to four swaps: the composition of permutations."""
    count = int(generator.integers(3, 5))
    balls = [BALLS[i] for i in generator.permutation(len(BALLS))[:count]]
    listing = ", ".join(f"{cup} {ball}" for cup, ball in zip(CUPS, balls, strict=False))
    steps, swaps = [], []
    for _ in range(int(generator.integers(2, 5))):
        one, other = sorted(int(i) for i in generator.choice(count, 2, replace=False))
        balls[one], balls[other] = balls[other], balls[one]
        swaps.append(f"Swap {CUPS[one]} and {CUPS[other]}.")
        steps.append(" ".join(f"{cup} {ball}" for cup, ball in zip(CUPS, balls, strict=False)))
    place = int(generator.integers(count))
    question = f"Cups: {listing}. {' '.join(swaps)} What is under {CUPS[place]}?"
    return f"cups {question}", question, steps, balls[place]


def _stories(generator: np.random.Generator) -> Parts:
    """Packs of things, less or more some of them."""
    name, thing = (names[int(generator.integers(len(names)))] for names in (NAMES, THINGS))
    packs, each = (int(i) for i in generator.integers(3, 13, 2))
    whole = packs * each
    loss = bool(generator.random() < 0.5)
    other = int(generator.integers(2, whole if loss else 40))
    after = whole - other if loss else whole + other
    verb = "gives away" if loss else "finds"
    question = (
        f"{name} buys {packs} packs of {each} {thing} and {verb} {other}. "
        f"How many {thing} are there now?"
    )
    steps = [f"{packs}*{each}={whole}", f"{whole}{'-' if loss else '+'}{other}={after}"]
    return f"stories {packs} {each} {verb} {other}", question, steps, str(after)


MAKERS = (_sums, _products, _cups, _stories)
