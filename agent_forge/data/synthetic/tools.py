"""Questions that need the calculator (call, result, answer), and a few that must be answered without a call.

The result in a row is Python's own exact arithmetic on the expression. The split is a hash of the two operands and the
operator, so held-out questions ask for sums that were never trained.
"""

import json
from typing import Any

import numpy as np

from agent_forge.data.synthetic import chat, draw_rows

# operator -> (symbol in an expression, phrasings of the question)
PHRASES: dict[str, tuple[str, ...]] = {
    "+": ("What is {a} plus {b}?", "Add {a} and {b}.", "How much is {a} + {b}?", "Compute {a} + {b}."),
    "-": ("What is {a} minus {b}?", "Take {b} from {a}.", "How much is {a} - {b}?", "Compute {a} - {b}."),
    "*": ("What is {a} times {b}?", "Multiply {a} by {b}.", "How much is {a} * {b}?", "Compute {a} * {b}."),
}
WORDS = ("river", "house", "garden", "winter", "people", "nation", "letter", "morning", "silver", "window")
CALL_SHARE = 0.9


def rows(count: int, split: str, seed: int, difficulty: int | None = None) -> list[dict[str, Any]]:
    """Return `count` rows of `split`; `difficulty` 1..3 is the number of digits of the operands, None mixes them."""

    def make(generator: np.random.Generator) -> tuple[str, dict[str, Any]]:
        if generator.random() < CALL_SHARE:
            return _calculation(generator, difficulty)
        word, other = (WORDS[i] for i in generator.permutation(len(WORDS))[:2])
        question = f"Repeat the words {word} {other}."
        answer = f"{word} {other}"
        return question, {"messages": chat(question, answer), "answer": answer, "difficulty": 1, "tool": ""}

    return draw_rows("tools", count, split, seed, make)


def _calculation(generator: np.random.Generator, difficulty: int | None) -> tuple[str, dict[str, Any]]:
    level = difficulty or int(generator.integers(1, 4))
    low, high = (0, 10) if level == 1 else (10 ** (level - 1), 10**level)
    a, b = (int(n) for n in generator.integers(low, high, 2))
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
    row = {"messages": messages, "answer": answer, "difficulty": level, "tool": "calculator", "expression": expression}
    return expression, row
