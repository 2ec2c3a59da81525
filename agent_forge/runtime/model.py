"""A Llama-family model as packed matrices: logits with a cache, and greedy generation.

The forward pass is one call of engine.c for up to 32 tokens. Without compiled code it is the numpy
code below over the same packed matrices, which is also the reference for tests of engine.c.
"""

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError
from agent_forge.kernels import build, native
from agent_forge.kernels.matrix import PackedMatrix
from agent_forge.runtime.shape import Shape

Array = NDArray[Any]
FIRST_CAPACITY = 256  # tokens; a cache that is full doubles
LINEARS = ("q", "k", "v", "o", "gate", "up", "down")
NORMS = ("norm_before", "norm_after", "q_norm", "k_norm")


class Cache:
    """Keys and values of one sequence: (layers, kv_heads, capacity, head_size) float32.

    The first `length` of `capacity` tokens are in use.
    """

    def __init__(self, shape: Shape, capacity: int = FIRST_CAPACITY) -> None:
        self.shape, self.length = shape, 0
        self.keys, self.values = self._empty(capacity), self._empty(capacity)

    def _empty(self, capacity: int) -> Array:
        return np.empty(
            (self.shape.layers, self.shape.kv_heads, capacity, self.shape.head_size), np.float32
        )

    def make_room(self, tokens: int) -> None:
        """Let the cache hold `tokens` tokens in all; capacity at least doubles when it grows."""
        capacity = self.keys.shape[2]
        if tokens <= capacity:
            return
        for name in ("keys", "values"):
            grown = self._empty(max(tokens, 2 * capacity))
            grown[:, :, : self.length] = getattr(self, name)[:, :, : self.length]
            setattr(self, name, grown)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = min(self.length, length)


@dataclass(frozen=True)
class PackedModel:
    """A model ready to run.

    matrices: `embedding`, `head`, and `0.q` ... `<layer>.down`.
    norms: `final_norm`, and `0.norm_before` ..., float32.
    threads: 0 takes every core of the process.
    """

    shape: Shape
    matrices: Mapping[str, PackedMatrix]
    norms: Mapping[str, Array]
    threads: int = 0
    notes: Sequence[str] = field(default=())  # one line per matrix that was repacked at a loss

    @property
    def size_bytes(self) -> int:
        """Return the size of all weights in memory; shared arrays count once."""
        arrays = [array for matrix in self.matrices.values() for array in matrix.arrays.values()]
        biases = [matrix.bias for matrix in self.matrices.values() if matrix.bias is not None]
        unique = {id(array): array.nbytes for array in [*arrays, *biases, *self.norms.values()]}
        return sum(unique.values())

    def new_cache(self, capacity: int = FIRST_CAPACITY) -> Cache:
        """Return an empty cache."""
        return Cache(self.shape, capacity)

    def logits(
        self, ids: Sequence[int] | Array, cache: Cache | None = None, *, last_only: bool = False
    ) -> Array:
        """Return logits (T, vocabulary) float32 of ids (T,) after the cache, which takes them in.

        Raises ConfigError for no ids or ids outside the vocabulary.
        """
        tokens = np.asarray(ids, np.int32).reshape(-1)
        cache = self.new_cache(max(FIRST_CAPACITY, len(tokens))) if cache is None else cache
        places = [len(tokens) - 1] if last_only else range(len(tokens))
        return self.step(tokens, np.zeros(len(tokens), np.int32), [cache], places)

    def step(
        self, ids: Array, sequences: Array, caches: Sequence[Cache], answering: Collection[int]
    ) -> Array:
        """Run ids (n,) int32, and append each to the cache that its entry of sequences (n,) names.

        Returns logits (len(answering), vocabulary) of the tokens at the places in `answering`, which
        ascend.
        """
        if not len(ids) or ids.min() < 0 or ids.max() >= self.shape.vocabulary:
            raise ConfigError(
                f"token ids must be 0 to {self.shape.vocabulary - 1} and at least one, "
                f"got {ids.tolist()[:8]}"
            )
        positions = np.empty(len(ids), np.int32)
        counts = np.bincount(sequences, minlength=len(caches))
        for number, cache in enumerate(caches):
            positions[sequences == number] = np.arange(cache.length, cache.length + counts[number])
            cache.make_room(cache.length + int(counts[number]))
        picked = np.asarray(list(answering), np.int32)
        logits = np.empty((len(picked), self.shape.vocabulary), np.float32)
        pairs = [(cache.keys, cache.values) for cache in caches]
        for first in range(0, len(ids), native.CHUNK):
            part = slice(first, first + native.CHUNK)
            low, high = np.searchsorted(picked, [first, first + native.CHUNK])
            tokens, places, owners, rows = (
                np.ascontiguousarray(a, np.int32)
                for a in (ids[part], positions[part], sequences[part], picked[low:high] - first)
            )
            self._forward(native.Chunk(tokens, places, owners, pairs, rows, logits[low:high]))
        for number, cache in enumerate(caches):
            cache.length += int(counts[number])
        return logits

    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        stop_ids: Collection[int] = (),
        on_token: Callable[[int], None] | None = None,
    ) -> list[int]:
        """Return the greedy continuation of a prompt, without the stop token.

        on_token: called with each token as soon as it is chosen.
        """
        cache = self.new_cache(len(prompt) + max_new_tokens)
        tokens: list[int] = []
        fed: Sequence[int] = prompt
        while len(tokens) < max_new_tokens:
            token = int(self.logits(fed, cache, last_only=True)[0].argmax())
            if token in stop_ids:
                break
            tokens.append(token)
            if on_token is not None:
                on_token(token)
            fed = [token]
        return tokens

    def _forward(self, chunk: native.Chunk) -> None:
        """Run one chunk; fill its caches and logits."""
        if build.library() is None:
            self._forward_in_numpy(chunk)
        else:
            native.pool(self.threads).forward(self._struct, chunk)

    @cached_property
    def _struct(self) -> native.ModelStruct:
        """Return engine.c's view of the model.

        It points into this model's arrays, which live as long as the model.
        """
        one = self.shape
        layers = (native.LayerStruct * one.layers)()
        for index in range(one.layers):
            for name in LINEARS:
                setattr(layers[index], name, self.matrices[f"{index}.{name}"].struct)
            for name in NORMS:
                setattr(layers[index], name, native.pointer(self.norms.get(f"{index}.{name}")))
        struct = native.ModelStruct(
            hidden=one.hidden, layers=one.layers, heads=one.heads, kv_heads=one.kv_heads,
            head_size=one.head_size, inner=one.inner, vocabulary=one.vocabulary,
            epsilon=one.epsilon, embedding=self.matrices["embedding"].struct,
            head=self.matrices["head"].struct, final_norm=native.pointer(self.norms["final_norm"]),
            frequencies=native.pointer(self._frequencies),
            layer=ctypes.cast(layers, ctypes.POINTER(native.LayerStruct)),
        )  # fmt: skip
        struct.owner = layers  # type: ignore[attr-defined]
        return struct

    @cached_property
    def _frequencies(self) -> Array:
        return np.asarray(self.shape.frequencies, np.float32)

    def _forward_in_numpy(self, chunk: native.Chunk) -> None:
        one, tokens = self.shape, len(chunk.ids)
        # In float32, as the compiled code has them: the two must agree on far positions too.
        angles = chunk.positions[:, None].astype(np.float32) * self._frequencies
        turns = (np.cos(angles)[:, None], np.sin(angles)[:, None])
        x = self.matrices["embedding"].take(chunk.ids)
        for index in range(one.layers):
            linears = {name: self.matrices[f"{index}.{name}"].multiply for name in LINEARS}
            normed = _rms_norm(x, self.norms[f"{index}.norm_before"], one.epsilon)
            q, k, v = (linears[name](normed).reshape(tokens, -1, one.head_size) for name in "qkv")
            q, k = (
                _rotate(_rms_norm(a, self.norms.get(f"{index}.{name}_norm"), one.epsilon), turns)
                for name, a in (("q", q), ("k", k))
            )
            # One token after the other: each may belong to another sequence, and sees those before
            # it.
            mixed = np.empty_like(q)
            for t, (sequence, position) in enumerate(
                zip(chunk.sequences, chunk.positions, strict=True)
            ):
                keys, values = (array[index] for array in chunk.caches[sequence])
                keys[:, position], values[:, position] = k[t], v[t]
                mixed[t] = _attend(q[t], keys[:, : position + 1], values[:, : position + 1])
            x = x + linears["o"](mixed.reshape(tokens, -1))
            normed = _rms_norm(x, self.norms[f"{index}.norm_after"], one.epsilon)
            gate = linears["gate"](normed)
            activated = gate / (1 + np.exp(-gate))  # SiLU
            x = x + linears["down"](activated * linears["up"](normed))
        if len(chunk.answering):
            chunk.logits[:] = self.matrices["head"].multiply(
                _rms_norm(x[chunk.answering], self.norms["final_norm"], one.epsilon)
            )


def _rms_norm(x: Array, weight: Array | None, epsilon: float) -> Array:
    if weight is None:
        return x
    factor = 1 / np.sqrt(
        np.square(x).mean(-1, keepdims=True, dtype=np.float32) + np.float32(epsilon)
    )
    return (x * factor * weight).astype(np.float32)


def _rotate(heads: Array, turns: tuple[Array, Array]) -> Array:
    """Turn heads (T, H, D) by cosines and sines (T, 1, D / 2)."""
    cosine, sine = turns
    left, right = np.split(heads, 2, axis=-1)
    return np.concatenate([left * cosine - right * sine, right * cosine + left * sine], axis=-1)


def _attend(q: Array, keys: Array, values: Array) -> Array:
    """Return attention of q (H, D) over keys and values (kv_heads, n, D): (H, D)."""
    # Neighbouring query heads share one head of keys and values (grouped-query attention).
    grouped = q.reshape(len(keys), -1, q.shape[1])
    scores = grouped @ keys.transpose(0, 2, 1) / np.float32(np.sqrt(q.shape[1]))
    # Less the largest score, so that exp cannot overflow.
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return (weights @ values).reshape(q.shape)
