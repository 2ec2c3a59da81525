"""Entropy coding of symbol streams: store, zstd or a range coder, whichever is smallest. Lossless.

Reads and writes `uint8` symbols. A first byte names the method. The range coder (constriction) uses one static table of
frequencies, kept as one byte a symbol: twelfths of an octave below the most frequent one, which costs under .001 bit.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import CheckpointError

Symbols = NDArray[np.uint8]

STORED, ZSTD, RANGE, CONSTANT = range(4)
ZSTD_LEVEL = 19
SAMPLE_SYMBOLS = 1 << 18  # longer streams try zstd on this many symbols first
STEPS_PER_OCTAVE = 12


def compress(symbols: Symbols) -> bytes:
    """Return the shortest of the known encodings of `symbols` (any length, also empty)."""
    symbols = np.ascontiguousarray(symbols, dtype=np.uint8).ravel()
    if len(symbols) and symbols.min() == symbols.max():
        return bytes([CONSTANT, int(symbols[0])])
    alphabet = int(symbols.max()) + 1 if len(symbols) else 1
    packed = pack_radix(symbols, alphabet)
    choices = [bytes([STORED, alphabet - 1]) + packed]
    if len(symbols):
        choices.append(bytes([RANGE, alphabet - 1]) + _range_encode(symbols, alphabet))
    if _zstd_may_win(packed, min(map(len, choices))):
        choices.append(bytes([ZSTD, alphabet - 1]) + _zstd(packed))
    return min(choices, key=len)


def expand(data: bytes, count: int) -> Symbols:
    """Return the `count` symbols that `compress` was given. Raises CheckpointError when `data` cannot be theirs."""
    if len(data) < 2 or data[0] > CONSTANT:
        raise CheckpointError(
            "an entropy-coded stream has no known method; the file is damaged, restore it from a copy"
        )
    method, alphabet, body = data[0], data[1] + 1, data[2:]
    if method == CONSTANT:
        return np.full(count, data[1], np.uint8)
    if method == RANGE:
        return _range_decode(body, alphabet, count)
    if method == ZSTD:
        import zstandard

        body = zstandard.ZstdDecompressor().decompress(body, max_output_size=count + 8)
    return unpack_radix(body, alphabet, count)


def symbols_per_byte(alphabet: int) -> int:
    """Return how many symbols of `alphabet` fit into a byte: five trits, two nibbles, eight bits."""
    return 8 if alphabet <= 2 else int(math.log(256) / math.log(alphabet) + 1e-9)


def pack_radix(symbols: Symbols, alphabet: int) -> bytes:
    """Write symbols below `alphabet` as digits of that base, as many a byte as fit (five for trits)."""
    per_byte = symbols_per_byte(alphabet)
    if per_byte == 1:
        return symbols.tobytes()
    padded = np.zeros(-(-len(symbols) // per_byte) * per_byte, np.uint16)
    padded[: len(symbols)] = symbols
    weights = np.array([max(alphabet, 2) ** i for i in range(per_byte)], np.uint16)
    packed: bytes = (padded.reshape(-1, per_byte) * weights).sum(1).astype(np.uint8).tobytes()
    return packed


def unpack_radix(data: bytes, alphabet: int, count: int) -> Symbols:
    """Undo `pack_radix`. Raises CheckpointError when `data` is too short."""
    per_byte = symbols_per_byte(alphabet)
    numbers = np.frombuffer(data, np.uint8)
    if len(numbers) * per_byte < count:
        raise CheckpointError(f"a stream of {len(numbers)} bytes cannot hold {count} symbols; the file is damaged")
    if per_byte == 1:
        return numbers[:count].copy()
    base = max(alphabet, 2)
    table = np.array([[(n // base**i) % base for i in range(per_byte)] for n in range(256)], np.uint8)
    return np.ascontiguousarray(table[numbers].reshape(-1)[:count])


def _zstd(data: bytes) -> bytes:
    import zstandard

    level = ZSTD_LEVEL if len(data) <= 4 * SAMPLE_SYMBOLS else 9
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data)


def _zstd_may_win(packed: bytes, best_bytes: int) -> bool:
    """Try zstd on a sample of a long stream: a stream without repeats is not worth the time."""
    if len(packed) <= SAMPLE_SYMBOLS:
        return True
    return len(_zstd(packed[:SAMPLE_SYMBOLS])) / SAMPLE_SYMBOLS < 1.02 * best_bytes / len(packed)


def _model(levels: Symbols) -> Any:
    from constriction import stream  # type: ignore[attr-defined]

    weights = np.where(levels > 0, np.exp2((levels.astype(np.float64) - 255) / STEPS_PER_OCTAVE), 0.0)
    return stream.model.Categorical((weights / weights.sum()).astype(np.float32), perfect=False)


def _range_encode(symbols: Symbols, alphabet: int) -> bytes:
    from constriction import stream  # type: ignore[attr-defined]

    counts = np.bincount(symbols, minlength=max(alphabet, 2)).astype(np.float64)
    with np.errstate(divide="ignore"):
        below = np.round(STEPS_PER_OCTAVE * np.log2(counts.max() / counts))
    levels = np.where(counts > 0, np.maximum(255 - below, 1), 0).astype(np.uint8)
    encoder = stream.queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), _model(levels))
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return levels.tobytes() + words


def _range_decode(body: bytes, alphabet: int, count: int) -> Symbols:
    from constriction import stream  # type: ignore[attr-defined]

    size = max(alphabet, 2)
    levels = np.frombuffer(body[:size], np.uint8)
    if len(levels) < size or (len(body) - size) % 4:
        raise CheckpointError("a range-coded stream is cut short; the file is damaged, restore it from a copy")
    decoder = stream.queue.RangeDecoder(np.frombuffer(body[size:], "<u4").astype(np.uint32))
    decoded: Symbols = decoder.decode(_model(levels), count).astype(np.uint8)
    return decoded
