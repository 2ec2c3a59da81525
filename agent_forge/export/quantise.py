"""Float matrices to GGUF blocks: F16, Q8_0, Q4_0, Q5_0, Q4_K, TQ1_0, TQ2_0.

The gguf package packs most types. Two cases are packed here: Q4_K, which gguf can only read, and
blocks that hold only -s, 0 and s. For those, Q4_0 and Q8_0 get the scale s and the codes -1, 0, 1,
which is exact where s is a float16 (gguf's own scaling is not). Formats: ggml's block structures
(ggml-common.h).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError, did_you_mean

Array = NDArray[Any]
# Weights per block, and the type of a matrix whose columns are not a multiple of that: llama.cpp
# falls back to the same types.
BLOCKS = {
    "F32": 1,
    "F16": 1,
    "Q8_0": 32,
    "Q4_0": 32,
    "Q5_0": 32,
    "Q4_K": 256,
    "TQ1_0": 256,
    "TQ2_0": 256,
}
INSTEAD = {
    "Q4_K": "Q5_0",
    "TQ1_0": "Q4_0",
    "TQ2_0": "Q4_0",
    "Q4_0": "F16",
    "Q5_0": "F16",
    "Q8_0": "F16",
}
TYPES = ("F16", "Q8_0", "Q4_0", "Q4_K", "TQ1_0", "TQ2_0")  # those that a user can choose
CHUNK_BLOCKS = 1 << 14
# Shares of a Q4_K block's range that are tried; the least squared error decides.
SHRINKS = np.linspace(0.85, 1.0, 7)


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """A matrix as GGUF stores it.

    data: (..., bytes) uint8, or floats.
    relative_error: |W - stored|² / |W|².
    """

    kind: str
    data: Array
    values: Array  # what a reader gets back, float32
    relative_error: float


def checked_type(kind: str) -> str:
    """Return a type by name. Raises ConfigError with the nearest known one."""
    if kind not in TYPES:
        raise ConfigError(
            f"no GGUF type '{kind}'{did_you_mean(kind, TYPES)}; known: {', '.join(TYPES)}"
        )
    return kind


def fitting(kind: str, columns: int) -> str:
    """Return `kind`, or the type that stands in for it where `columns` are not whole blocks."""
    while columns % BLOCKS[kind]:
        kind = INSTEAD[kind]
    return kind


def store(weight: Array, kind: str) -> QuantisedTensor:
    """Quantise weight (..., columns) float32; `kind` must fit its columns."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    weight = np.ascontiguousarray(weight, np.float32)
    if kind == "F32":
        return QuantisedTensor(kind, weight, weight, 0.0)
    if kind == "F16":
        half = np.clip(weight, -65504, 65504).astype(np.float16)
        return QuantisedTensor(
            kind, half, half.astype(np.float32), _error(weight, half.astype(np.float32))
        )
    blocks = weight.reshape(-1, BLOCKS[kind])
    parts = [
        _pack(part, kind)
        for part in np.array_split(blocks, max(1, -(-len(blocks) // CHUNK_BLOCKS)))
    ]
    data = np.concatenate(parts).reshape(*weight.shape[:-1], -1)
    values = dequantize(data, GGMLQuantizationType[kind]).reshape(weight.shape)
    return QuantisedTensor(kind, data, values, _error(weight, values))


def _error(weight: Array, values: Array) -> float:
    return float(
        np.square(weight - values, dtype=np.float64).sum()
        / max(float(np.square(weight, dtype=np.float64).sum()), 1e-30)
    )


def _pack(blocks: Array, kind: str) -> Array:
    """Return (blocks, bytes) uint8."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if kind == "Q4_K":
        return pack_q4_k(blocks)
    packed: Array = quantize(blocks, GGMLQuantizationType[kind]).reshape(len(blocks), -1)
    if kind not in ("Q4_0", "Q8_0"):
        return packed
    scale = np.abs(blocks).max(1)
    of_one_size = ((blocks == 0) | (np.abs(blocks) == scale[:, None])).all(1)
    # float16 holds no scale above 65504.
    ternary = of_one_size & (scale > 0) & (scale < 65504)
    codes = np.sign(blocks[ternary]).astype(np.int8)
    head = scale[ternary].astype(np.float16)[:, None].view(np.uint8)
    if kind == "Q8_0":
        packed[ternary] = np.concatenate([head, codes.view(np.uint8)], 1)
    else:
        digits = (codes + 8).astype(np.uint8)
        packed[ternary] = np.concatenate([head, digits[:, :16] | digits[:, 16:] << 4], 1)
    return packed


def pack_q4_k(blocks: Array) -> Array:
    """Return blocks (n, 256) float32 packed as Q4_K, (n, 144) uint8.

    Each of a block's 8 groups of 32 has a 6-bit scale and a 6-bit minimum, and the block has a
    float16 factor for each of the two. A block holds the two factors, then the scales and minimums
    (12 bytes), then 4 bits per weight.
    """
    groups = blocks.reshape(-1, 8, 32)
    scale, low = _best_ranges(groups)
    with np.errstate(divide="ignore", invalid="ignore"):
        d = (scale.max(1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
        dmin = (low.max(1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
        scales = np.where(d > 0, np.rint(scale / d), 0).clip(0, 63)
        lows = np.where(dmin > 0, np.rint(low / dmin), 0).clip(0, 63)
        step = (d * scales)[..., None]
        codes = (
            np.where(step > 0, np.rint((groups + (dmin * lows)[..., None]) / step), 0)
            .clip(0, 15)
            .astype(np.uint8)
        )
    # The first 8 bytes hold the low 6 bits of groups 0-3 and, above them, the high 2 bits of groups
    # 4-7; the last 4 bytes hold the low 4 bits of groups 4-7, scales below minimums.
    s, m = scales.astype(np.uint8), lows.astype(np.uint8)
    packed_scales = np.concatenate(
        [
            s[:, :4] | s[:, 4:] >> 4 << 6,
            m[:, :4] | m[:, 4:] >> 4 << 6,
            s[:, 4:] & 15 | m[:, 4:] << 4,
        ],
        axis=1,
    )
    # A byte holds the codes of one place in two neighbouring groups.
    pairs = codes.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    halves = np.concatenate([d, dmin], 1).astype(np.float16).view(np.uint8)
    return np.concatenate([halves, packed_scales, nibbles], 1)


def _best_ranges(groups: Array) -> tuple[Array, Array]:
    """Return step and -minimum (n, 8) of each group, from the shrunk range with the least error."""
    lowest, highest = np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)
    best = np.full(lowest.shape, np.inf)
    step, low = np.zeros_like(lowest), np.zeros_like(lowest)
    for shrink in SHRINKS.astype(np.float32):
        one, start = (highest - lowest) * shrink / 15, -lowest * shrink
        divisor = np.where(one > 0, one, 1)[..., None]
        codes = np.rint((groups + start[..., None]) / divisor).clip(0, 15)
        error = np.square(codes * one[..., None] - start[..., None] - groups).sum(2)
        better = error < best
        best, step, low = (
            np.where(better, error, best),
            np.where(better, one, step),
            np.where(better, start, low),
        )
    return step, low
