"""Token windows from text and rows, mixed into batches that depend on nothing but (seed, step).

Text is tokenised once into memory-mapped shards under `data.cache`; rows are encoded once in memory
and packed, several to a window. Labels follow Hugging Face: not shifted, -100 where nothing is
learned.
"""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from agent_forge.config import DataConfig
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.core.events import EventLog
from agent_forge.core.seeds import numpy_generator, seed_for
from agent_forge.data.chat import encode_chats
from agent_forge.data.documents import EXCERPT_BYTES, SHARES, documents
from agent_forge.data.packaged import KINDS, files_of
from agent_forge.data.rows import last_turn_alone, read
from agent_forge.data.sampler import item_at
from agent_forge.data.shards import Shards, build
from agent_forge.data.windows import cut_left, longest, refuse_long_window, window_prefix

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

IGNORE = -100
_log = logging.getLogger("agent_forge")
CHECKED_BATCHES = 16
NO_ROWS = "the mix names 'rows', but data.rows is empty; give files: data.rows=[chats.jsonl]"
Row = Mapping[str, Any]


class Source(Protocol):
    """Anything that can fill a window of tokens."""

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return ids and labels, each (length,) int64."""
        ...


class TextSource:
    """Windows of running text of one split. `tokens` is a memory-mapped sequence of token ids.

    events: receives the progress of a first tokenisation.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: "PreTrainedTokenizerFast",
        split: str,
        events: EventLog | None = None,
    ) -> None:
        self.key = f"text-{split}-{_cache_key(config, tokenizer, split)}"
        self.epochs = config.sampling == "epoch"
        self.prefix = window_prefix(tokenizer)
        self.longest = longest(tokenizer)
        folder = Path(config.cache) / self.key
        try:
            self.tokens = Shards(folder)
        except (OSError, ValueError, KeyError, EOFError):
            progress = partial(events.progress, "tokenise") if events is not None else None
            build(folder, list(documents(config, split)), tokenizer, progress)
            self.tokens = Shards(folder)

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return a random window as (ids, labels)."""
        self._check(length)
        ids = self._window(int(generator.integers(0, len(self.tokens) - length + 1)), length)
        return ids, ids.copy()

    def take_at(
        self, position: int, length: int, seed: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return the window at a running position.

        In every epoch each window of the text comes once, in a new order.
        """
        available = self._check(length)
        ids = self._window(item_at(position, available, seed) * (length - len(self.prefix)), length)
        return ids, ids.copy()

    def fingerprint(self) -> str:
        """Return what identifies the tokens: the text's files, the tokenizer and the split."""
        return f"{self.key}-{'epoch' if self.epochs else 'random'}{'-bos' if self.prefix else ''}"

    def windows(self, length: int, count: int) -> "NDArray[np.int64]":
        """Return up to `count` non-overlapping windows, spread evenly over the text: (count,
        length) int64.
        """
        available = self._check(length)
        chosen = np.unique(np.linspace(0, available - 1, min(count, available)).astype(int))
        return np.stack(
            [self._window(i * (length - len(self.prefix)), length) for i in chosen.tolist()]
        )

    def _check(self, length: int) -> int:
        """Return how many windows the text has.

        Raises DataError when there are none, ConfigError for windows past the model's positions.
        """
        refuse_long_window(length, self.longest)
        if len(self.tokens) < length:
            raise DataError(
                f"the text has {len(self.tokens)} tokens, fewer than one window of {length}; "
                "add more text"
            )
        return (len(self.tokens) - len(self.prefix)) // (length - len(self.prefix))

    def _window(self, start: int, length: int) -> "NDArray[np.int64]":
        """Return the `length` ids of the window at `start`, the first of which is BOS where the
        model needs it.
        """
        ids = self.tokens[start : start + length].astype(np.int64)
        if self.prefix and int(ids[0]) != self.prefix[0]:
            ids = np.concatenate(
                [np.asarray(self.prefix, np.int64), ids[: length - len(self.prefix)]]
            )
        return ids


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
        for ids, mask in encode_chats(tokenizer, [row["messages"] for row in rows], mask_roles):
            labels = np.where(mask, ids, IGNORE)
            self._rows.append((np.asarray(ids, np.int64), labels.astype(np.int64)))
        if not any((labels != IGNORE).any() for _, labels in self._rows):
            raise DataError(
                f"no token of these {len(rows)} rows is trained: none has a turn of "
                f"{', '.join(mask_roles)}"
            )
        self._pad = (
            tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        )
        self._prefix = window_prefix(tokenizer)
        self._longest = longest(tokenizer)
        # lengths of windows that were compared with the rows already
        self._checked: set[int] = set()

    def fingerprint(self) -> str:
        """Return a hash of all ids and labels."""
        digest = hashlib.sha256()
        for ids, labels in self._rows:
            digest.update(ids.tobytes() + labels.tobytes())
        return digest.hexdigest()[:16]

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return whole rows packed into (ids, labels); the rest is padding.

        A row longer than the window is cut on the left, where its oldest turns are, and a warning
        counts such rows.
        """
        self._check(length)
        ids = np.full(length, self._pad, np.int64)
        labels = np.full(length, IGNORE, np.int64)
        used = misses = 0
        while used < length and misses < 4:
            row_ids, row_labels = self._rows[int(generator.integers(len(self._rows)))]
            if used + len(row_ids) > length and used:
                misses += 1
                continue
            if len(row_ids) > length:
                row_ids, row_labels = self._cut(row_ids, row_labels, length)
            end = used + len(row_ids)
            ids[used:end], labels[used:end] = row_ids, row_labels
            used = end
        return ids, labels

    def _cut(
        self, ids: "NDArray[np.int64]", labels: "NDArray[np.int64]", length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return the last `length` ids and labels of a row, with BOS where the row begins so."""
        places = cut_left(range(len(ids)), length, range(len(self._prefix)) if self._prefix else ())
        return ids[places], labels[places]

    def _check(self, length: int) -> None:
        """Raise ConfigError for windows past the model's positions; warn once of rows that are
        longer.
        """
        if length in self._checked:
            return
        self._checked.add(length)
        refuse_long_window(length, self._longest)
        long = sum(len(ids) > length for ids, _ in self._rows)
        if long:
            _log.warning(
                "%d of %d rows are longer than a window of %d tokens: cut on the left",
                long,
                len(self._rows),
                length,
            )


class Mixture:
    """Batches whose rows are drawn from several sources by weight; `batch(step)` is a pure function
    of step.

    When a source counts epochs (data.sampling=epoch), every source gets its exact share of rows,
    and that source yields its windows in order of position. Raises DataError when the first batches
    hold no trained token at all.
    """

    pure = True  # other processes may prepare any step, so nothing depends on earlier ones

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
            raise ConfigError(
                f"mix weights must be non-negative with a positive sum, got {dict(weights)}"
            )
        self.names = [key for key in weights if weights[key] > 0]
        self.sources = [sources[key] for key in self.names]
        self._borders = np.cumsum([weights[key] / total for key in self.names])
        self.rows, self.length_tokens, self.seed, self.name = rows, length_tokens, seed, name
        self._weights = [weights[key] / total for key in self.names]
        self._counted = any(getattr(one, "epochs", False) for one in self.sources)
        if not any(
            bool((self.batch(step)["labels"][:, 1:] != IGNORE).any())
            for step in range(CHECKED_BATCHES)
        ):
            raise DataError(
                f"no token of the mix {', '.join(self.names)} is trained in its first "
                f"{CHECKED_BATCHES} batches of "
                f"{rows} x {length_tokens} tokens; use longer windows, or rows that end with what "
                "is to be learned"
            )

    def fingerprint(self) -> str:
        """Return a hash of the sources, their weights and the shape of a batch."""
        parts = [
            one.fingerprint() if hasattr(one, "fingerprint") else type(one).__name__
            for one in self.sources
        ]
        text = json.dumps(
            [parts, self.names, self._weights, self.rows, self.length_tokens, self.seed, self.name]
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def batch(self, step: int) -> "dict[str, torch.Tensor]":
        """Return {"input_ids", "labels"}: (rows, length_tokens) int64 each."""
        import torch

        generator = numpy_generator(self.seed, "mixture", self.name, step)
        if self._counted:
            taken = self._take_counted(generator, step)
            ids, labels = (np.stack(part) for part in zip(*taken, strict=True))
            return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}
        # One stratified draw: row i lands in ((i + u) / rows), so a batch holds its sources in
        # proportion.
        points = (np.arange(self.rows) + generator.random()) / self.rows
        picks = np.minimum(np.searchsorted(self._borders, points), len(self.sources) - 1)
        taken = [self.sources[pick].take(generator, self.length_tokens) for pick in picks]
        ids, labels = (np.stack(part) for part in zip(*taken, strict=True))
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}

    def _take_counted(self, generator: np.random.Generator, step: int) -> "list[Any]":
        """Return the windows of a step when positions are counted: source k owns rows border(k-1)
        .. border(k).
        """
        taken: list[Any] = []
        before, after = (self._drawn(step), self._drawn(step + 1))
        for index, one in enumerate(self.sources):
            for position in range(before[index], after[index]):
                if getattr(one, "epochs", False):
                    seed = seed_for(self.seed, "epoch", self.name, self.names[index])
                    counted: Any = one  # the only kind with `epochs`: text, or its like
                    taken.append(counted.take_at(position, self.length_tokens, seed))
                else:
                    taken.append(one.take(generator, self.length_tokens))
        return taken

    def _drawn(self, step: int) -> list[int]:
        """Return how many rows each source has given before `step`: its exact share, rounded at the
        borders.
        """
        borders = [
            0,
            *(round(border * self.rows * step) for border in self._borders[:-1].tolist()),
            self.rows * step,
        ]
        return [high - low for low, high in pairwise(borders)]


def source(
    kind: str,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    split: str,
    seed: int,
    *,
    rows: int = 4000,
    mask_roles: Collection[str] = ("assistant",),
    last_turn: bool = False,
    events: EventLog | None = None,
) -> Source:
    """Return the source named `kind`.

    last_turn: of data.rows, only the last learned turn of a row is learned.

    A kind is "text" (data.text), "code" or "languages" (`packaged`), "rows" (data.rows), or a
    generated task (a module of data/synthetic).
    """
    if kind == "text":
        return TextSource(config, tokenizer, split, events)
    if kind in KINDS:
        return TextSource(replace(config, text=[KINDS[kind]]), tokenizer, split, events)
    if kind == "rows":
        if not config.rows:
            raise ConfigError(NO_ROWS)
        own = read(
            config.rows, split, mask_roles, encoding=config.encoding, ignored=config.ignore_keys
        )
        if last_turn:
            own = [{"messages": last_turn_alone(row["messages"], mask_roles)} for row in own]
        return RowSource(own, tokenizer, mask_roles)
    task = registry.load("agent_forge.data.synthetic", kind, "generated task")
    return RowSource(task.rows(rows, split, seed), tokenizer, mask_roles)


def check_kind(setting: str, kind: str, config: DataConfig) -> None:
    """Raise ConfigError where `kind`, in the mix `setting`, has nothing to read.

    That is so without data.rows, or when a package is missing.
    """
    if kind == "rows" and not config.rows:
        raise ConfigError(f"{setting}: {NO_ROWS}")
    try:
        usable = kind not in KINDS or files_of(KINDS[kind])
    except DataError as error:
        raise ConfigError(f"{setting}: {error}") from None
    if not usable:
        raise ConfigError(f"{setting}: no file of '{kind}' is on this disk; leave it out")


def tokenizer_hash(tokenizer: "PreTrainedTokenizerFast") -> str:
    """Return a short hash of a tokenizer's vocabulary, merges and added tokens."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()[:16]


def _cache_key(config: DataConfig, tokenizer: "PreTrainedTokenizerFast", split: str) -> str:
    settings = {
        key: value
        for key, value in asdict(config).items()
        if key not in ("cache", "rows", "sampling")
    }
    stamps = [_stamp(name) for name in config.text]
    text = json.dumps([settings, stamps, split, SHARES, EXCERPT_BYTES, tokenizer_hash(tokenizer)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(name: str) -> list[Any]:
    """Return what changes when a local source changes: names, sizes and times of its files."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    return [
        [str(file), file.stat().st_size, file.stat().st_mtime_ns]
        for file in files
        if file.is_file()
    ]
