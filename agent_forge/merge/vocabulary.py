"""Bring models of different vocabularies onto one: each output row's token, and its embedding.

The row of a token that a model does not know is taken from the base where the base knows it,
else it is the mean over the models that do, so that a merge leaves such a token's embedding where
its owners have it.
"""

import copy
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from agent_forge.core.errors import CheckpointError, ConfigError, did_you_mean
from agent_forge.merge.arrays import Array, decode, encode
from agent_forge.merge.files import ModelFiles
from agent_forge.merge.layers import Layers
from agent_forge.merge.pieces import Stored
from agent_forge.merge.recipe import TokenSource
from agent_forge.merge.tokenizer_files import canonical, token_ids


def union(tokenizers: Sequence[Mapping[str, Any]], notes: list[str]) -> dict[str, Any]:
    """Return the first tokenizer, its ids unchanged, with the others' tokens and merges added.

    tokenizers: as the `tokenizers` library writes them. What the result cannot take over goes into
    `notes`.
    Raises ConfigError for tokenizers of different kinds, CheckpointError when the result does not
    load as it must.
    """
    kinds = {tokenizer["model"].get("type") for tokenizer in tokenizers}
    if len(kinds) > 1:
        raise ConfigError(
            f"no union of tokenizers of different kinds: {', '.join(sorted(map(str, kinds)))}; use "
            "tokenizer_source: base"
        )
    result = copy.deepcopy(dict(tokenizers[0]))
    expected = token_ids(result)
    _spell_out(result)
    for other in tokenizers[1:]:
        _add_tokens(result, expected, other)
        _add_merges(result, other, notes)
    loaded = token_ids(canonical(json.dumps(result), "the united tokenizer"))
    if loaded != expected:
        odd = next(
            token for token in {**expected, **loaded} if expected.get(token) != loaded.get(token)
        )
        raise CheckpointError(
            f"the united tokenizer gives {odd!r} the id {loaded.get(odd)} and not "
            f"{expected.get(odd)}; use "
            "tokenizer_source: base"
        )
    return result


def _spell_out(tokenizer: dict[str, Any]) -> None:
    """Enter the added tokens into the vocabulary too: a loader would give other tokens new ids."""
    for entry in sorted(tokenizer.get("added_tokens") or [], key=lambda entry: entry["id"]):
        _enter(tokenizer, entry["content"], entry["id"], 0.0)


def _enter(tokenizer: dict[str, Any], token: str, number: int, score: float) -> None:
    """Enter a token into the vocabulary, unless it is there.

    Raises ConfigError where its id leaves a gap in a list.
    """
    vocab = tokenizer["model"]["vocab"]
    if isinstance(vocab, dict):
        vocab.setdefault(token, number)
    elif number == len(vocab):
        vocab.append([token, score])
    elif number > len(vocab):
        raise ConfigError(
            f"the vocabulary has no token {len(vocab)}, so it cannot grow; use tokenizer_source: "
            "base"
        )


def _add_tokens(result: dict[str, Any], known: dict[str, int], other: Mapping[str, Any]) -> None:
    added = {entry["content"]: entry for entry in other.get("added_tokens") or []}
    mine = {entry["content"] for entry in result.get("added_tokens") or []}
    vocab = other["model"].get("vocab") or {}
    for token, old in sorted(token_ids(other).items(), key=lambda item: item[1]):
        if token not in known:
            known[token] = max(known.values()) + 1
            scored = isinstance(vocab, list) and old < len(vocab)
            _enter(result, token, known[token], vocab[old][1] if scored else 0.0)
        if token in added and token not in mine:
            result.setdefault("added_tokens", []).append({**added[token], "id": known[token]})


def _add_merges(result: dict[str, Any], other: Mapping[str, Any], notes: list[str]) -> None:
    """Append the other's merges whose parts and results are tokens of the vocabulary."""
    merges = result["model"].get("merges")
    if merges is None:
        return
    vocab = result["model"]["vocab"]
    prefix = len(result["model"].get("continuing_subword_prefix") or "")
    have = {tuple(merge) for merge in merges}
    new = [merge for merge in other["model"]["merges"] if tuple(merge) not in have]
    fitting = [
        [left, right] for left, right in new
        if left in vocab and right in vocab and left + right[prefix:] in vocab
    ]  # fmt: skip
    merges += fitting
    if len(fitting) < len(new):
        notes.append(
            f"{len(new) - len(fitting)} merges of the united tokenizer lead to no token and were "
            "left out"
        )


@dataclass(slots=True, kw_only=True)
class Vocabulary:
    """Where each output row comes from. size: the rows of the result.

    rows[label][i]: the row of that model for output token i, -1 where it knows no such token.
    named[i]: the model and row that the recipe names for output token i; None for zeros.
    """

    size: int
    rows: dict[str, Array]
    base: str
    named: dict[int, tuple[str, int] | None] = field(default_factory=dict)

    def owners(self, row: int) -> list[tuple[str, int]]:
        """Return the models, and their rows, whose mean is used for models that do not know a
        token.
        """
        if row in self.named:
            named = self.named[row]
            return [named] if named else []
        owners = [(label, int(rows[row])) for label, rows in self.rows.items() if rows[row] >= 0]
        of_base = [pair for pair in owners if pair[0] == self.base]
        return of_base or owners


def make_vocabulary(
    output_ids: Mapping[str, int],
    tokenizers: Mapping[str, Mapping[str, int]],
    heights: Mapping[str, int],
    base: str,
    multiple: int,
) -> Vocabulary:
    """Return the rows of every model for the tokens of `output_ids` (token -> row).

    tokenizers: the ids of each model's tokens. heights: rows of each model's embedding.

    The result has a row for each token, rounded up to `multiple`, and no fewer than the base when
    its tokens suffice (models pad their embeddings).
    """
    needed = max(output_ids.values()) + 1
    padded = heights[base] if needed <= heights[base] and not multiple else needed
    size = -(-padded // multiple) * multiple if multiple else padded
    rows = {}
    for label, ids in tokenizers.items():
        source_rows = np.full(size, -1, np.int64)
        for token, row in output_ids.items():
            if ids.get(token, heights[label]) < heights[label]:
                source_rows[row] = ids[token]
        rows[label] = source_rows
    # Rows that no token has (padding) come from the base as far as it has them.
    unnamed = np.setdiff1d(
        np.arange(min(size, heights[base])), np.fromiter(output_ids.values(), np.int64)
    )
    rows[base][unnamed] = unnamed
    return Vocabulary(size=size, rows=rows, base=base)


def give(
    vocabulary: Vocabulary,
    tokens: Mapping[str, TokenSource],
    ids: Mapping[str, int],
    tokenizers: Mapping[str, Mapping[str, int]],
) -> None:
    """Enter the embeddings that a recipe names for single tokens.

    Raises ConfigError for an unknown token or model.
    """
    for token, source in tokens.items():
        where = f"tokenizer: tokens: {token}"
        if token not in ids:
            raise ConfigError(
                f"{where}: no such token in the result{did_you_mean(token, list(ids))}"
            )
        row, named = ids[token], None
        if source.model:
            if source.model not in tokenizers:
                known = ", ".join(tokenizers)
                raise ConfigError(
                    f"{where}: no model '{source.model}' in the recipe; it names {known}"
                )
            theirs = tokenizers[source.model]
            place = source.token if isinstance(source.token, int) else theirs.get(source.token, -1)
            if place not in theirs.values():
                raise ConfigError(f"{where}: {source.model} has no token {source.token!r}")
            named = (source.model, place)
        vocabulary.named[row] = named
        for label, rows in vocabulary.rows.items():
            if source.force:
                rows[row] = place if named and label == source.model else -1


def transplant(
    models: Mapping[str, ModelFiles], vocabulary: Vocabulary, names: Sequence[str]
) -> None:
    """Give every model the vocabulary's rows in the tensors `names`: embedding, head, its bias."""
    for name in names:
        originals = {
            label: model.stored(name) for label, model in models.items() if name in model.forms
        }
        for label, original in originals.items():
            models[label].put(name, _rearranged(original, label, vocabulary, originals))


def embedding_names(model: ModelFiles, layers: Layers | None, height: int) -> list[str]:
    """Return the tensors outside the layers that have one row per token."""
    return [
        name for name, (shape, _) in model.forms.items()
        if shape and shape[0] == height and (layers is None or layers.split(name) is None)
    ]  # fmt: skip


def _rearranged(
    own: Stored, label: str, vocabulary: Vocabulary, originals: Mapping[str, Stored]
) -> Stored:
    width, dtype = math.prod(own.shape[1:]), own.dtype
    places = vocabulary.rows[label]

    def borrowed(row: int) -> Array:
        owners = [
            (originals[other], at) for other, at in vocabulary.owners(row) if other in originals
        ]
        if not owners:
            return np.zeros(width, dtype.stored)
        parts = [
            decode(o.read(at * width, (at + 1) * width), o.dtype, np.float64) for o, at in owners
        ]
        return encode(np.mean(parts, axis=0), dtype)

    def read(start: int, stop: int) -> Array:
        first, last = start // width, -(-stop // width)
        out = np.empty((last - first, width), dtype.stored)
        segment = places[first:last]
        missing = segment < 0
        jumps = (np.diff(segment) != 1) | missing[1:] | missing[:-1]
        breaks = np.flatnonzero(jumps) + 1
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
