"""Questions that need the calculator (call, result, answer), and a few that need no call.

The result in a row is Python's own exact arithmetic on the expression. Canonical is the expression,
its operands in ascending order where they commute, so held-out questions ask for sums that were
never trained, commuted or reworded. Rows of the same two numbers are a cluster. Questions without a
call are a kind of their own.
"""

import json
import re
from typing import Any

import numpy as np

from agent_forge.core.seeds import seed_for
from agent_forge.data.synthetic import chat, draw_rows

# operator -> (symbol in an expression, phrasings of the question)
PHRASES: dict[str, tuple[str, ...]] = {
    "+": (
        "What is {a} plus {b}?",
        "Add {a} and {b}.",
        "How much is {a} + {b}?",
        "Compute {a} + {b}.",
    ),
    "-": (
        "What is {a} minus {b}?",
        "Take {b} from {a}.",
        "How much is {a} - {b}?",
        "Compute {a} - {b}.",
    ),
    "*": (
        "What is {a} times {b}?",
        "Multiply {a} by {b}.",
        "How much is {a} * {b}?",
        "Compute {a} * {b}.",
    ),
}
WORDS = (
    "river", "house", "garden", "winter", "people", "nation", "letter", "morning", "silver",
    "window", "school", "farm", "market", "road", "army", "law", "bank", "ship", "forest", "city",
    "bridge", "gold", "peace", "trade", "coast", "land", "vote", "union", "debt", "mine",
)  # fmt: skip
CALL_SHARE = 0.9
COMMUTES = "+*"
# Of the easiest questions, the share whose operands have one digit each; the others have one
# operand of one digit and one of two. Held-out questions are distinct, and only 210 are as short as
# that. Training repeats them, because copying begins with single digits. With 0.1 in training as
# well, the nano trunk answered between 0 and 56% of its questions, by luck; with 0.8, and more of
# these rows in its mix, 80% (docs/log.md).
HELD_OUT_SHORT_SHARE = 0.1
TRAINING_SHORT_SHARE = 0.8
DIGITS = 3  # most digits of an operand
# With more digits than that, the share of sums whose operands have lengths of their own. The other
# sums have operands of nearly equal length, and a model that saw no others cuts the digits of
# "1234 minus 77" in the middle: 123-477.
UNEQUAL_SHARE = 0.6


def rows(
    count: int, split: str, seed: int, difficulty: int | None = None, digits: int = DIGITS
) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..3 is the number of digits of an operand, None
    mixes them.

    digits: above 3, most sums have operands of 1 to so many digits, each of its own length.
    """
    short_share = TRAINING_SHORT_SHARE if split == "train" else HELD_OUT_SHORT_SHARE

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        if generator.random() < CALL_SHARE:
            return _calculation(generator, difficulty, short_share, digits)
        word, other = (WORDS[i] for i in generator.permutation(len(WORDS))[:2])
        answer = f"{word} {other}"
        row = {
            "messages": chat(f"Repeat the words {answer}.", answer),
            "answer": answer,
            "difficulty": 1,
            "tool": "",
        }
        return f"repeat {sorted((word, other))}", {**row, "kind": "no call"}

    return draw_rows("tools", count, split, seed, make)


def sums(count: int, split: str, seed: int, digits: int) -> list[dict[str, Any]]:
    """Return `count` rows that need the calculator, with a longer operand of 1 to `digits` digits.

    The lengths take turns, and each is a row's kind. Where a split has fewer sums of one digit,
    there are fewer rows of them.
    """
    counts = [len(range(first, count, digits)) for first in range(digits)]
    rows: list[dict[str, Any]] = []
    for longest, number in enumerate(counts, start=1):

        def make(
            generator: np.random.Generator, longest: int = longest
        ) -> tuple[str, dict[str, Any]]:
            lengths = [longest, int(generator.integers(1, longest + 1))]
            a, b = (_of_length(generator, lengths[i]) for i in generator.permutation(2))
            kind = f"{longest} digit{'s' if longest > 1 else ''}"
            return _sum(generator, a, b, min(longest, 5), kind)

        rows += draw_rows("tools", number, split, seed_for(seed, "sums", longest), make)
    return rows


def longest_operand(expression: str) -> int:
    """Return how many digits the longer operand of an expression has."""
    return max(map(len, re.findall(r"\d+", expression)), default=0)


def _of_length(generator: np.random.Generator, digits: int) -> int:
    return int(generator.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _calculation(
    generator: np.random.Generator, difficulty: int | None, short_share: float, digits: int
) -> tuple[str, dict[str, Any]]:
    level = difficulty or int(generator.integers(1, 4))
    if digits > DIGITS and generator.random() < UNEQUAL_SHARE:
        lengths = [int(n) for n in generator.integers(1, digits + 1, 2)]
        a, b = (_of_length(generator, n) for n in lengths)
        level = min(max(lengths), 5)
    else:
        a, b = _near_lengths(generator, level, short_share)
    return _sum(generator, a, b, level, "call")


def _sum(
    generator: np.random.Generator, a: int, b: int, level: int, kind: str
) -> tuple[str, dict[str, Any]]:
    """Return the canonical form and the row of a question about two numbers."""
    operator = "+-*"[int(generator.integers(3))]
    phrases = PHRASES[operator]
    question = phrases[int(generator.integers(len(phrases)))].format(a=a, b=b)
    expression = f"{a}{operator}{b}"
    answer = str({"+": a + b, "-": a - b, "*": a * b}[operator])
    call = json.dumps({"name": "calculator", "arguments": {"expression": expression}})
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"},
        {"role": "tool", "content": f"<tool_response>{answer}</tool_response>"},
        {"role": "assistant", "content": answer},
    ]
    first, second = sorted((a, b))
    canonical = f"{first}{operator}{second}" if operator in COMMUTES else expression
    return canonical, {
        "messages": messages, "answer": answer, "difficulty": level, "tool": "calculator",
        "expression": expression, "kind": kind, "cluster": f"tools/{first},{second}",
    }  # fmt: skip


def _near_lengths(
    generator: np.random.Generator, level: int, short_share: float
) -> tuple[int, int]:
    """Return operands of `level` digits each; of level 1, some have one operand of two digits."""
    low, high = (0, 10) if level == 1 else (10 ** (level - 1), 10**level)
    a, b = (int(n) for n in generator.integers(low, high, 2))
    if level == 1 and generator.random() >= short_share:
        longer = int(generator.integers(10, 100))
        a, b = (a, longer) if generator.random() < 0.5 else (longer, b)
    return a, b
