"""Twenty families of reasoning-gym, generated from one fixed seed, judged by their own scorers.

The package is optional (`pip install 'agent-forge[skills]'`). A reply's answer is what follows its
last "answer", or its last line. Families are kinds, so the JSON of a score has each of them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.data import gym
from agent_forge.evaluate.engine import generate_replies
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

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


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[Mapping[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 where the family's scorer gives the reply full marks, and weight 1."""
    questions = [row["messages"][:1] for row in items]
    replies = generate_replies(model, tokenizer, questions, MAX_NEW_TOKENS, context)
    texts = [str(tokenizer.decode(reply, skip_special_tokens=True)) for reply in replies]
    right = [
        float(gym.is_right(row, final_answer(text))) for row, text in zip(items, texts, strict=True)
    ]
    return np.stack([np.asarray(right), np.ones(len(right))], axis=1)


def final_answer(text: str) -> str:
    """Return what follows the last "answer" of a reply on its line, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [match[1] for line in lines for match in [_ANSWER.search(line)] if match]
    answer = named[-1] if named else (lines[-1] if lines else "")
    return answer.strip().strip("*`").rstrip(".")
