"""Tokenised text in memory-mapped shards, built once and one by one: a kill loses one shard.

`FOLDER/shard-00000.npy` … hold token ids of some hundred documents each, every document followed by
a separator; `FOLDER/index.json`, written last, lists their lengths and makes the folder whole.
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_forge.checkpoint import atomic
from agent_forge.data.windows import text_start

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

INDEX = "index.json"
SHARD_BYTES = 1 << 24  # bytes of text per shard


class Shards:
    """All tokens of a folder as one sequence; slices are copies."""

    def __init__(self, folder: Path) -> None:
        lengths = json.loads((folder / INDEX).read_text(encoding="utf-8"))["lengths"]
        self._maps = [
            np.load(folder / _name(i), mmap_mode="r", allow_pickle=False)
            for i in range(len(lengths))
        ]
        if [len(part) for part in self._maps] != lengths:
            raise ValueError(f"{folder}: a shard does not have its recorded length")
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, part: slice) -> "NDArray[Any]":
        start, stop, _ = part.indices(len(self))
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        pieces = []
        while start < stop:
            offset = start - int(self._starts[first])
            piece = self._maps[first][offset : offset + stop - start]
            pieces.append(piece)
            start += len(piece)
            first += 1
        return np.concatenate(pieces or [self._maps[0][:0]])


def build(
    folder: Path,
    texts: Sequence[str],
    tokenizer: "PreTrainedTokenizerFast",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Tokenise `texts` into `folder`; shards that an earlier, killed run has finished are kept.

    The same folder must always mean the same texts and tokenizer. progress(done, total) is called
    after each shard. The tokenizer works on all cores.
    """
    separator = text_start(tokenizer)
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 65536 else np.uint32)
    groups = _grouped(texts)
    lengths = []
    for number, group in enumerate(groups):
        file = folder / _name(number)
        tokens = _finished(file)
        if tokens is None:
            parts: list[NDArray[Any]] = []
            for encoded in tokenizer.backend_tokenizer.encode_batch(
                group, add_special_tokens=False
            ):
                parts += [np.asarray(encoded.ids, dtype), np.asarray([separator], dtype)]
            tokens = np.concatenate(parts)
            buffer = io.BytesIO()
            np.save(buffer, tokens, allow_pickle=False)
            atomic.write_bytes(file, buffer.getvalue())
        lengths.append(len(tokens))
        if progress is not None:
            progress(number + 1, len(groups))
    atomic.write_json(folder / INDEX, {"lengths": lengths, "dtype": dtype.name})


def _finished(file: Path) -> "NDArray[Any] | None":
    """Return a whole shard of an earlier run, or None."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError):
        return None


def _grouped(texts: Sequence[str]) -> list[list[str]]:
    """Return the texts in order, in groups of about SHARD_BYTES."""
    groups: list[list[str]] = [[]]
    used = 0
    for text in texts:
        if used >= SHARD_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(text)
        used += len(text)
    return groups


def _name(number: int) -> str:
    return f"shard-{number:05}.npy"
