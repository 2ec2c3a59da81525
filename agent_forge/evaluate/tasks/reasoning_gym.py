"""Twenty families of reasoning-gym, generated from one fixed seed, judged by their own scorers.

The package is optional (`pip install 'agent-forge[skills]'`). A reply's answer is what follows its
last "answer", or its last line. Families are kinds, so the JSON of a score has each of them.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from agent_forge.data import gym
from agent_forge.evaluate.engine import text_match
from agent_forge.evaluate.task import EvalContext, Task

# chance: coin flips and syllogisms have two answers, weekdays seven, the others none to guess.
TASK = Task(
    name="reasoning_gym",
    version=1,
    metric="exact match",
    higher_is_better=True,
    chance=0.057,
    by_default=False,
)
FAMILIES = (
    "aiw", "basic_arithmetic", "calendar_arithmetic", "chain_sum", "coin_flip", "decimal_chain_sum",
    "family_relationships", "gcd", "lcm", "leg_counting", "letter_counting", "number_sequence",
    "number_sorting", "prime_factorization", "products", "simple_equations", "spell_backward",
    "syllogism", "time_intervals", "word_sorting",
)  # fmt: skip
MAX_NEW_TOKENS = 96
_ANSWER = re.compile(r"answer(?:\s+is)?\s*[:=]?\s*(.+)", re.IGNORECASE)


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` questions of the split, the families in turn.

    They are the same for every seed. Raises DataError without the package.
    """
    del context
    return gym.rows(FAMILIES, n, split)


def is_right(row: Mapping[str, Any], text: str) -> bool:
    """Return whether the family's own scorer gives a reply full marks."""
    return gym.is_right(row, final_answer(text))


score = partial(text_match, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)


def final_answer(text: str) -> str:
    """Return what follows the last "answer" of a reply on its line, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [match[1] for line in lines for match in [_ANSWER.search(line)] if match]
    answer = named[-1] if named else (lines[-1] if lines else "")
    return answer.strip().strip("*`").rstrip(".")
