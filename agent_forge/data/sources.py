"""Token windows from text and rows, mixed into batches that depend on nothing but (seed, step).

Text is tokenised once into a memory-mapped file under `data.cache`; rows are encoded once in memory and packed, several
to a window. Labels follow Hugging Face: not shifted, -100 where nothing is learned.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent_forge.checkpoint import atomic
from agent_forge.config import DataConfig
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data.chat import encode_chat
from agent_forge.data.documents import documents

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

IGNORE = -100
Row = Mapping[str, Any]


class Source(Protocol):
    """Anything that can fill a window of tokens."""

    def take(self, generator: np.random.Generator, length: int) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return ids and labels, each (length,) int64."""
        ...


class TextSource:
    """Windows of running text of one split. `tokens` is a memory-mapped array of token ids."""

    def __init__(self, config: DataConfig, tokenizer: "PreTrainedTokenizerFast", split: str) -> None:
        path = Path(config.cache) / f"text-{split}-{_cache_key(config, tokenizer, split)}.npy"
        if not path.exists():
            _tokenise(config, tokenizer, split, path)
        try:
            self.tokens: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError):
            _tokenise(config, tokenizer, split, path)
            self.tokens = np.load(path, mmap_mode="r", allow_pickle=False)

    def take(self, generator: np.random.Generator, length: int) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return a random window as (ids, labels)."""
        if len(self.tokens) < length:
            raise DataError(f"the text has {len(self.tokens)} tokens, fewer than one window of {length}; add more text")
        start = int(generator.integers(0, len(self.tokens) - length + 1))
        ids = self.tokens[start : start + length].astype(np.int64)
        return ids, ids.copy()

    def windows(self, length: int, count: int) -> "NDArray[np.int64]":
        """Return up to `count` non-overlapping windows, spread evenly over the text: (count, length) int64."""
        available = len(self.tokens) // length
        if not available:
            raise DataError(f"the text has {len(self.tokens)} tokens, fewer than one window of {length}; add more text")
        chosen = np.unique(np.linspace(0, available - 1, min(count, available)).astype(int))
        return np.stack([self.tokens[i * length : (i + 1) * length].astype(np.int64) for i in chosen])


class RowSource:
    """Chat rows, packed whole into windows; only turns of `mask_roles` are learned."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: "PreTrainedTokenizerFast",
        mask_roles: Collection[str] = ("assistant",),
    ) -> None:
        if not rows:
            raise DataError("no row to train on")
        self._rows: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for row in rows:
            ids, mask = encode_chat(tokenizer, row["messages"], mask_roles)
            labels = np.where(mask, ids, IGNORE)
            self._rows.append((np.asarray(ids, np.int64), labels.astype(np.int64)))
        if not any((labels != IGNORE).any() for _, labels in self._rows):
            raise DataError(
                f"no token of these {len(rows)} rows is trained: none has a turn of {', '.join(mask_roles)}"
            )
        self._pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def take(self, generator: np.random.Generator, length: int) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return whole rows packed into (ids, labels); the rest is padding. A first row that is too long is cut."""
        ids = np.full(length, self._pad, np.int64)
        labels = np.full(length, IGNORE, np.int64)
        used = misses = 0
        while used < length and misses < 4:
            row_ids, row_labels = self._rows[int(generator.integers(len(self._rows)))]
            if used + len(row_ids) > length and used:
                misses += 1
                continue
            fitting = min(len(row_ids), length - used)
            ids[used : used + fitting] = row_ids[:fitting]
            labels[used : used + fitting] = row_labels[:fitting]
            used += fitting
        return ids, labels


class Mixture:
    """Batches whose rows are drawn from several sources by weight; `batch(step)` is a pure function of step."""

    def __init__(
        self,
        sources: Mapping[str, Source],
        weights: Mapping[str, float],
        *,
        rows: int,
        length_tokens: int,
        seed: int,
        name: str,
    ) -> None:
        unknown = set(weights) - set(sources)
        if unknown:
            raise ConfigError(f"mix names {sorted(unknown)}, but the sources are {sorted(sources)}")
        total = float(sum(weights.values()))
        if total <= 0 or min(weights.values()) < 0:
            raise ConfigError(f"mix weights must be non-negative with a positive sum, got {dict(weights)}")
        self.names = [key for key in weights if weights[key] > 0]
        self.sources = [sources[key] for key in self.names]
        self._borders = np.cumsum([weights[key] / total for key in self.names])
        self.rows, self.length_tokens, self.seed, self.name = rows, length_tokens, seed, name

    def batch(self, step: int) -> "dict[str, torch.Tensor]":
        """Return {"input_ids", "labels"}: (rows, length_tokens) int64 each."""
        import torch

        generator = numpy_generator(self.seed, "mixture", self.name, step)
        # One stratified draw: row i lands in ((i + u) / rows), so a batch holds its sources in proportion.
        points = (np.arange(self.rows) + generator.random()) / self.rows
        picks = np.minimum(np.searchsorted(self._borders, points), len(self.sources) - 1)
        taken = [self.sources[pick].take(generator, self.length_tokens) for pick in picks]
        ids, labels = (np.stack(part) for part in zip(*taken, strict=True))
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def source(
    kind: str,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    split: str,
    seed: int,
    *,
    rows: int = 4000,
    mask_roles: Collection[str] = ("assistant",),
) -> Source:
    """Return the source named `kind`: "text", or a generated task (a module of data/synthetic)."""
    if kind == "text":
        return TextSource(config, tokenizer, split)
    task = registry.load("agent_forge.data.synthetic", kind, "generated task")
    return RowSource(task.rows(rows, split, seed), tokenizer, mask_roles)


def tokenizer_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return a short hash of a tokenizer's vocabulary, merges and added tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def _cache_key(config: DataConfig, tokenizer: "PreTrainedTokenizerFast", split: str) -> str:
    settings = {key: value for key, value in asdict(config).items() if key != "cache"}
    stamps = [_stamp(name) for name in config.text]
    text = json.dumps([settings, stamps, split, tokenizer_hash(tokenizer)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(name: str) -> list[Any]:
    """Return what changes when a local source changes: names, sizes and times of its files."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _tokenise(config: DataConfig, tokenizer: "PreTrainedTokenizerFast", split: str, path: Path) -> None:
    """Write the token ids of a split's documents, each followed by the end-of-text token, to `path`."""
    import io

    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    dtype = np.uint16 if len(tokenizer) <= 65536 else np.uint32
    parts = []
    for encoded in tokenizer.backend_tokenizer.encode_batch(list(documents(config, split)), add_special_tokens=False):
        parts += [np.asarray(encoded.ids, dtype), np.asarray([separator], dtype)]
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(parts), allow_pickle=False)
    atomic.write_bytes(path, buffer.getvalue())
