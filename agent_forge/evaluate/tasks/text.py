"""Bits per byte on pieces of held-out documents.

Every byte is predicted; the first token follows the separator. Bits per byte, unlike perplexity,
compares models with different tokenizers. Pieces are taken in turn from every document, so that
they come from as many documents as possible; the pieces of one document form a cluster.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data import documents, text_start
from agent_forge.evaluate.engine import row_nll
from agent_forge.evaluate.task import EvalContext, Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# chance: a model that gives every byte the same probability.
TASK = Task(name="text", version=2, metric="bits per byte", higher_is_better=False, chance=8.0)
PIECE_BYTES = 320


def items(split: str, n: int, context: EvalContext) -> list[dict[str, str]]:
    """Return up to `n` distinct pieces of about PIECE_BYTES bytes, cut at spaces.

    A piece is {"text", "canonical", "cluster"}.
    """
    generator = numpy_generator(context.seed, "evaluate", "text", split)
    taken: set[str] = set()
    queues: list[list[dict[str, str]]] = []
    for document in documents(context.data, split):
        name = hashlib.sha256(document.encode()).hexdigest()[:12]
        fresh = {" ".join(piece.split()): piece for piece in cut(document, PIECE_BYTES)}
        pieces = [
            {"text": piece, "canonical": key, "cluster": name}
            for key, piece in fresh.items()
            if key not in taken
        ]
        taken.update(fresh)
        queues.append([pieces[i] for i in generator.permutation(len(pieces))])
    queues = [queues[i] for i in generator.permutation(len(queues)) if queues[i]]
    if not queues:
        raise DataError(
            f"the {split} split has no text of {PIECE_BYTES} bytes; add text to data.text"
        )
    in_turn = (
        queue[place]
        for place in range(max(map(len, queues)))
        for queue in queues
        if place < len(queue)
    )
    return list(itertools.islice(in_turn, n))


def cut(document: str, size_bytes: int) -> list[str]:
    """Return consecutive pieces of whole words, each at least `size_bytes` bytes.

    A rest is dropped.
    """
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
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[Mapping[str, Any]],
    context: EvalContext,
) -> NDArray[np.float64]:
    """Return (n, 2): the bits and the UTF-8 bytes of each piece."""
    separator = text_start(tokenizer)
    rows = []
    for item in items:
        ids = tokenizer.encode(item["text"], add_special_tokens=False)
        rows.append(([separator, *ids], [False] + [True] * len(ids)))
    bits = row_nll(model, rows, context.batch_tokens)[:, 0] / math.log(2)
    return np.stack(
        [bits, np.asarray([len(item["text"].encode()) for item in items], np.float64)], axis=1
    )
