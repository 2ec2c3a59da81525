"""Bits per byte on pieces of held-out documents; every byte is predicted, the first token from the separator.

Bits per byte, unlike perplexity, compares models with different tokenizers.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import documents
from agent_forge.evaluate.engine import row_nll
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# chance: a model that gives every byte the same probability.
TASK = Task(name="text", version=1, metric="bits per byte", higher_is_better=False, chance=8.0)
PIECE_BYTES = 320


def items(split: str, n: int, context: EvalContext) -> list[str]:
    """Return `n` pieces of about PIECE_BYTES bytes, cut at spaces, drawn over all documents of the split."""
    pieces = [piece for document in documents(context.data, split) for piece in cut(document, PIECE_BYTES)]
    if not pieces:
        raise DataError(f"the {split} split has no text of {PIECE_BYTES} bytes; add text to data.text")
    order = numpy_generator(context.seed, "evaluate", "text", split).permutation(len(pieces))
    return [pieces[i] for i in order[:n]]


def cut(document: str, size_bytes: int) -> list[str]:
    """Return consecutive pieces of whole words of at least `size_bytes` bytes; a shorter rest is dropped."""
    pieces: list[str] = []
    words: list[str] = []
    held = 0
    for word in document.split(" "):
        words.append(word)
        held += len(word.encode()) + 1
        if held >= size_bytes:
            pieces.append(" ".join(words))
            words, held = [], 0
    return pieces


def score(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", items: Sequence[str], context: EvalContext
) -> NDArray[np.float64]:
    """Return (n, 2): bits, and UTF-8 bytes, of each piece."""
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    rows = []
    for piece in items:
        ids = tokenizer.encode(piece, add_special_tokens=False)
        rows.append(([separator, *ids], [False] + [True] * len(ids)))
    bits = row_nll(model, rows, context.batch_tokens)[:, 0] / math.log(2)
    return np.stack([bits, np.asarray([len(piece.encode()) for piece in items], np.float64)], axis=1)
