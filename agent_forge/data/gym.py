"""Questions of reasoning-gym's generators, with their own scorers (Apache-2.0, optional package).

A row is {"messages": question and answer, "answer", "family", "entry", "canonical", "cluster",
"kind"}. The hash of a question decides its split, so training and evaluation share no question.
Generators are addressed by (family, number), with one fixed seed: the rows are the same everywhere.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.documents import split_of
from agent_forge.data.synthetic import chat

SEED = 20_251
MISSING = "reasoning-gym is not installed; pip install 'agent-forge[skills]'"
# Questions without a new one of the split after which a family is taken to hold no more.
PATIENCE = 2_000


def installed() -> bool:
    """Return whether the package is there."""
    return importlib.util.find_spec("reasoning_gym") is not None


def rows(families: Sequence[str], count: int, split: str) -> list[dict[str, Any]]:
    """Return up to `count` distinct questions of a split, the families in turn.

    Raises DataError without the package, and for a family that it does not have.
    """
    queues = [_of_family(family, -(-count // len(families)), split) for family in families]
    longest = max(map(len, queues))
    in_turn = [queue[place] for place in range(longest) for queue in queues if place < len(queue)]
    return in_turn[:count]


def _of_family(family: str, count: int, split: str) -> list[dict[str, Any]]:
    generator = _generator(family)
    chosen: dict[str, dict[str, Any]] = {}
    number = misses = 0
    while len(chosen) < count and misses < PATIENCE:
        entry = generator[number]
        number, misses = number + 1, misses + 1
        canonical = f"gym/{family}/{entry['question']}"
        if entry["answer"] is None or split_of(canonical) != split or canonical in chosen:
            continue
        misses = 0
        chosen[canonical] = {
            "messages": chat(entry["question"], str(entry["answer"])),
            "answer": str(entry["answer"]), "family": family, "entry": entry,
            "canonical": canonical, "cluster": canonical, "kind": family,
        }  # fmt: skip
    return list(chosen.values())


def is_right(row: Mapping[str, Any], answer: str) -> bool:
    """Return whether the family's own scorer gives an answer full marks.

    Some scorers raise on text that is not of the answer's form: such an answer is wrong.
    """
    try:
        score = _generator(str(row["family"])).score_answer(answer, entry=row["entry"])
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError):
        return False
    return bool(score >= 1.0)


@cache
def _generator(family: str) -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise DataError(MISSING) from None
    try:
        return reasoning_gym.create_dataset(family, size=10**9, seed=SEED)
    except ValueError as error:
        raise DataError(f"reasoning-gym has no family '{family}' ({error})") from None
