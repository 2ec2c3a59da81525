"""Bring models of different vocabularies onto one: which token each output row is, and whose embedding it gets.

Reads tokenizer.json as JSON. A row of a token that a model does not know is taken from the base where the base knows it,
else it is the mean over the models that do, so that a merge leaves such a token's embedding where its owners have it.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from agent_forge.core.errors import CheckpointError, ConfigError, did_you_mean
from agent_forge.merge.arrays import Array, decode, encode
from agent_forge.merge.files import ModelFiles
from agent_forge.merge.layers import Layers
from agent_forge.merge.pieces import Stored
from agent_forge.merge.recipe import TokenSource

TOKENIZER = "tokenizer.json"
NOT_COMPARED = ("truncation", "padding", "version")  # how it was last used, not what a token means


def read_tokenizer(directory: Path) -> dict[str, Any] | None:
    """Return tokenizer.json, None when there is none; not to be changed. Raises CheckpointError when it is damaged."""
    path = directory / TOKENIZER
    if not path.is_file():
        return None
    try:
        return _parsed(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); restore it from a copy") from None


@lru_cache(maxsize=2)
def _parsed(content: bytes) -> dict[str, Any]:
    """Return parsed JSON, not to be changed. Siblings mostly have the same file, and parsing takes a tenth of a second."""
    found: dict[str, Any] = json.loads(content)
    return found


def difference(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """Return the place of the first difference that changes what token ids mean, "" when there is none."""
    mine, theirs = ({k: v for k, v in content.items() if k not in NOT_COMPARED} for content in (one, two))
    return _difference(mine, theirs, "")


def _difference(a: Any, b: Any, where: str) -> str:
    if a == b:
        return ""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *b]:
            if key not in a or key not in b or a[key] != b[key]:
                return _difference(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(a, list) and isinstance(b, list):
        for i, (left, right) in enumerate(zip(a, b, strict=False)):
            if left != right:
                return _difference(left, right, f"{where}[{i}]")
        return f"{where} ({len(a)} and {len(b)} entries)"
    return f"{where} ({_short(a)} and {_short(b)})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token."""
    vocab = tokenizer["model"].get("vocab") or {}
    found = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
    found.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens") or []})
    return found


def union(tokenizers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the first tokenizer with the tokens and merges of the others added behind its own; its ids stay.

    Raises ConfigError for tokenizers of different kinds.
    """
    result = copy.deepcopy(dict(tokenizers[0]))
    kinds = {tokenizer["model"].get("type") for tokenizer in tokenizers}
    if len(kinds) > 1:
        raise ConfigError(f"no union of tokenizers of different kinds: {', '.join(sorted(map(str, kinds)))}")
    known = token_ids(result)
    for other in tokenizers[1:]:
        _add_tokens(result, known, other)
        merges = result["model"].get("merges")
        if merges is not None:
            have = {json.dumps(merge) for merge in merges}
            merges += [merge for merge in other["model"]["merges"] if json.dumps(merge) not in have]
    return result


def _add_tokens(result: dict[str, Any], known: dict[str, int], other: Mapping[str, Any]) -> None:
    added = {entry["content"]: entry for entry in other.get("added_tokens") or []}
    scores = other["model"].get("vocab") or {}
    for token, old in sorted(token_ids(other).items(), key=lambda item: item[1]):
        if token in known:
            continue
        known[token] = new = max(known.values()) + 1
        if token in added:
            result.setdefault("added_tokens", []).append({**added[token], "id": new})
        elif isinstance(result["model"]["vocab"], dict):
            result["model"]["vocab"][token] = new
        elif new == len(result["model"]["vocab"]):
            result["model"]["vocab"].append([token, scores[old][1]])
        else:
            raise ConfigError("a Unigram vocabulary cannot grow behind added tokens; use tokenizer_source: base")


@dataclass(slots=True, kw_only=True)
class Vocabulary:
    """Where each output row comes from. size: rows of the result.

    rows[label][i]: the row of that model for output token i, -1 where it knows no such token.
    given[i]: the model and row that the recipe names for output token i; None for zeros.
    """

    size: int
    rows: dict[str, Array]
    base: str
    given: dict[int, tuple[str, int] | None] = field(default_factory=dict)

    def owners(self, row: int) -> list[tuple[str, int]]:
        """Return the models (and their rows) whose mean stands in for models that do not know a token."""
        if row in self.given:
            named = self.given[row]
            return [named] if named else []
        found = [(label, int(rows[row])) for label, rows in self.rows.items() if rows[row] >= 0]
        of_base = [pair for pair in found if pair[0] == self.base]
        return of_base or found


def make_vocabulary(
    target: Mapping[str, Any],
    tokenizers: Mapping[str, Mapping[str, Any]],
    heights: Mapping[str, int],
    base: str,
    multiple: int,
) -> Vocabulary:
    """Return the rows of every model for the target tokenizer. heights: rows of each model's embedding.

    The result has a row for each token, rounded up to `multiple`, and no fewer than the base when its tokens suffice
    (models pad their embeddings).
    """
    wanted = token_ids(target)
    needed = max(wanted.values()) + 1
    padded = heights[base] if needed <= heights[base] and not multiple else needed
    size = -(-padded // multiple) * multiple if multiple else padded
    rows = {}
    for label, tokenizer in tokenizers.items():
        found = np.full(size, -1, np.int64)
        ids = token_ids(tokenizer)
        for token, row in wanted.items():
            if ids.get(token, heights[label]) < heights[label]:
                found[row] = ids[token]
        rows[label] = found
    # Rows that no token has (padding) come from the base as far as it has them.
    unnamed = np.setdiff1d(np.arange(min(size, heights[base])), np.fromiter(wanted.values(), np.int64))
    rows[base][unnamed] = unnamed
    return Vocabulary(size=size, rows=rows, base=base)


def give(
    vocabulary: Vocabulary,
    tokens: Mapping[str, TokenSource],
    target: Mapping[str, Any],
    tokenizers: Mapping[str, Mapping[str, Any]],
) -> None:
    """Enter the embeddings that a recipe names for single tokens. Raises ConfigError for an unknown token or model."""
    ids = token_ids(target)
    for token, source in tokens.items():
        where = f"tokenizer: tokens: {token}"
        if token not in ids:
            raise ConfigError(f"{where}: no such token in the result{did_you_mean(token, list(ids))}")
        row, named = ids[token], None
        if source.model:
            if source.model not in tokenizers:
                known = ", ".join(tokenizers)
                raise ConfigError(f"{where}: no model '{source.model}' in the recipe; it names {known}")
            theirs = token_ids(tokenizers[source.model])
            place = source.token if isinstance(source.token, int) else theirs.get(source.token, -1)
            if place not in theirs.values():
                raise ConfigError(f"{where}: {source.model} has no token {source.token!r}")
            named = (source.model, place)
        vocabulary.given[row] = named
        for label, rows in vocabulary.rows.items():
            if source.force:
                rows[row] = place if named and label == source.model else -1


def transplant(models: Mapping[str, ModelFiles], vocabulary: Vocabulary, names: Sequence[str]) -> None:
    """Give every model the vocabulary's rows in the tensors `names` (embedding, head, head's bias)."""
    for name in names:
        originals = {label: model.stored(name) for label, model in models.items() if name in model.forms}
        for label, original in originals.items():
            models[label].put(name, _rearranged(original, label, vocabulary, originals))


def embedding_names(model: ModelFiles, layers: Layers | None, height: int) -> list[str]:
    """Return the tensors outside the layers that have one row a token."""
    return [
        name for name, (shape, _) in model.forms.items()
        if shape and shape[0] == height and (layers is None or layers.split(name) is None)
    ]  # fmt: skip


def _rearranged(own: Stored, label: str, vocabulary: Vocabulary, originals: Mapping[str, Stored]) -> Stored:
    width, dtype = math.prod(own.shape[1:]), own.dtype
    places = vocabulary.rows[label]

    def borrowed(row: int) -> Array:
        owners = [(originals[other], at) for other, at in vocabulary.owners(row) if other in originals]
        if not owners:
            return np.zeros(width, dtype.stored)
        parts = [decode(o.read(at * width, (at + 1) * width), o.dtype, np.float64) for o, at in owners]
        return encode(np.mean(parts, axis=0), dtype)

    def read(start: int, stop: int) -> Array:
        first, last = start // width, -(-stop // width)
        out = np.empty((last - first, width), dtype.stored)
        segment = places[first:last]
        breaks = np.flatnonzero((np.diff(segment) != 1) | (segment[1:] < 0) | (segment[:-1] < 0)) + 1
        for begin, end in zip([0, *breaks], [*breaks, len(segment)], strict=True):
            at = int(segment[begin])
            if at < 0:
                for row in range(begin, end):
                    out[row] = borrowed(first + row)
            else:
                out[begin:end] = own.read(at * width, (at + end - begin) * width).reshape(-1, width)
        flat: Array = out.reshape(-1)[start - first * width : stop - first * width]
        return flat

    return Stored((vocabulary.size, *own.shape[1:]), dtype, read)
