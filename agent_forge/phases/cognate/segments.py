"""Rows whose facts and question lie in different segments: only written memory can carry the answer across.

A window of 2n tokens holds the facts in its first n and the question with its answer in its last n. The loss runs the
halves as separate segments: no attention between them, memory written after the first and read in the second.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.core.errors import DataError
from agent_forge.data import encode_chat
from agent_forge.data.sources import IGNORE
from agent_forge.models import cognate_loss

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from agent_forge.models.cognate import CognateForCausalLM


class SegmentRows:
    """Memory rows cut into two segments; a `data.Source`."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerFast") -> None:
        if not rows:
            raise DataError("no memory row to train on")
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.rows = [
            (
                encode_chat(tokenizer, [{"role": "user", "content": row["facts"]}])[0],
                encode_chat(
                    tokenizer,
                    [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}],
                ),
            )
            for row in rows
        ]

    def take(self, generator: np.random.Generator, length: int) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return (ids, labels) of one row that fits, each (length,)."""
        for _ in range(64):
            found = self.window(int(generator.integers(len(self.rows))), length)
            if found is not None:
                return found
        raise DataError(f"no memory row fits two segments of {length // 2} tokens; raise branch.length_tokens")

    def window(self, index: int, length: int) -> "tuple[NDArray[np.int64], NDArray[np.int64]] | None":
        """Return (ids, labels) of row `index`, or None when one of its halves is longer than a segment."""
        facts, (asked, mask) = self.rows[index]
        half = length // 2
        if len(facts) > half or len(asked) > length - half:
            return None
        ids = np.full(length, self.pad, np.int64)
        labels = np.full(length, IGNORE, np.int64)
        ids[: len(facts)] = facts
        ids[half : half + len(asked)] = asked
        labels[half : half + len(asked)] = np.where(mask, asked, IGNORE)
        return ids, labels


def two_segment_loss(
    model: "CognateForCausalLM", input_ids: Tensor, labels: Tensor, pad: int, *, write: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """Return the mean loss of the two halves of each row, memory being carried over when `write`."""
    half = input_ids.shape[1] // 2
    parts = [(input_ids[:, :half], labels[:, :half]), (input_ids[:, half:], labels[:, half:])]
    memory = None
    total = torch.zeros((), device=input_ids.device)
    weight = 0
    metrics: dict[str, float] = {}
    for number, (ids, wanted) in enumerate(parts):
        loss, found, memory = cognate_loss.expected_loss(
            model, ids, wanted, attention_mask=ids.ne(pad).long(), memory=memory, write_memory=write and number == 0
        )
        count = max(int((wanted[:, 1:] != IGNORE).sum()), 1)
        total = total + loss * count
        weight += count
        metrics |= {f"{name}_{number + 1}": value for name, value in found.items()}
    return total / weight, metrics
