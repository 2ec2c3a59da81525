"""Entropy coding of symbol streams: store, zstd or a range coder, whichever is smallest. Lossless.

Reads and writes `uint8` symbols. A first byte names the method. The range coder (constriction) uses
one static table of frequencies, stored as one byte per symbol: twelfths of an octave below the most
frequent one, which costs less than .001 bit per symbol.
"""

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.codecs.range_decoder import open_stream
from agent_forge.core.errors import CheckpointError

Symbols = NDArray[np.uint8]

STORED, ZSTD, RANGE, CONSTANT = range(4)
ZSTD_LEVEL = 19
SAMPLE_SYMBOLS = 1 << 16  # longer streams try zstd on this many symbols first
STEPS_PER_OCTAVE = 12
# Classes of rows and columns lie a third of an octave apart: a table that is so far off costs at
# most .005 bits per code.
CLASSES_PER_OCTAVE = 3
MIDDLE_CLASS = 60


def compress(symbols: Symbols) -> bytes:
    """Return the shortest of the known encodings of `symbols` (any length, also empty)."""
    symbols = np.ascontiguousarray(symbols, dtype=np.uint8).ravel()
    if len(symbols) and symbols.min() == symbols.max():
        return bytes([CONSTANT, int(symbols[0])])
    alphabet = int(symbols.max()) + 1 if len(symbols) else 1
    packed = pack_radix(symbols, alphabet)
    choices = [bytes([STORED, alphabet - 1]) + packed]
    if len(symbols) and _entropy_bytes(symbols) < len(packed):
        choices.append(bytes([RANGE, alphabet - 1]) + _range_encode(symbols, alphabet))
    if _zstd_may_win(packed, min(map(len, choices))):
        choices.append(bytes([ZSTD, alphabet - 1]) + _zstd(packed))
    return min(choices, key=len)


def expand(data: bytes, count: int) -> Symbols:
    """Return the `count` symbols that `compress` was given.

    Raises CheckpointError when `data` cannot be theirs.
    """
    if len(data) < 2 or data[0] > CONSTANT:
        raise CheckpointError(
            "an entropy-coded stream has no known method; the file is damaged, restore it from a "
            "copy"
        )
    method, alphabet, body = data[0], data[1] + 1, memoryview(data)[2:]
    if method == CONSTANT:
        return np.full(count, data[1], np.uint8)
    if method == RANGE:
        return _range_decode(body, alphabet, count)
    if method == ZSTD:
        import zstandard

        unpacked = zstandard.ZstdDecompressor().decompress(body, max_output_size=count + 8)
        body = memoryview(unpacked)
    return unpack_radix(body, alphabet, count)


def symbols_per_byte(alphabet: int) -> int:
    """Return how many symbols of `alphabet` fit into a byte: five trits, two nibbles."""
    return 8 if alphabet <= 2 else int(math.log(256) / math.log(alphabet) + 1e-9)


def pack_radix(symbols: Symbols, alphabet: int) -> bytes:
    """Write symbols below `alphabet` as digits of that base, as many per byte as fit."""
    per_byte = symbols_per_byte(alphabet)
    if per_byte == 1:
        return symbols.tobytes()
    padded = np.zeros(-(-len(symbols) // per_byte) * per_byte, np.uint16)
    padded[: len(symbols)] = symbols
    weights = np.array([max(alphabet, 2) ** i for i in range(per_byte)], np.uint16)
    packed: bytes = (padded.reshape(-1, per_byte) * weights).sum(1).astype(np.uint8).tobytes()
    return packed


def unpack_radix(data: bytes | memoryview, alphabet: int, count: int) -> Symbols:
    """Undo `pack_radix`. Raises CheckpointError when `data` is too short."""
    per_byte = symbols_per_byte(alphabet)
    numbers = np.frombuffer(data, np.uint8)
    if len(numbers) * per_byte < count:
        raise CheckpointError(
            f"a stream of {len(numbers)} bytes cannot hold {count} symbols; the file is damaged"
        )
    if per_byte == 1:
        return numbers[:count].copy()
    base = max(alphabet, 2)
    table = np.array(
        [[(n // base**i) % base for i in range(per_byte)] for n in range(256)], np.uint8
    )
    return np.ascontiguousarray(table[numbers].reshape(-1)[:count])


def _entropy_bytes(symbols: Symbols) -> float:
    """Return the bytes that an ideal coder of single symbols would take."""
    counts = np.bincount(symbols)
    shares = counts[counts > 0] / len(symbols)
    return float(-len(symbols) * (shares * np.log2(shares)).sum() / 8)


def _zstd(data: bytes) -> bytes:
    import zstandard

    level = ZSTD_LEVEL if len(data) <= 4 * SAMPLE_SYMBOLS else 9
    return zstandard.ZstdCompressor(level=level, write_content_size=True).compress(data)


def _zstd_may_win(packed: bytes, best_bytes: int) -> bool:
    """Return whether zstd, fast and on a sample, shortens a long stream: without repeats it only
    takes time.
    """
    if len(packed) <= SAMPLE_SYMBOLS:
        return True
    import zstandard

    # The middle, because the beginning of a matrix may be unlike the rest.
    middle = packed[(len(packed) - SAMPLE_SYMBOLS) // 2 :][:SAMPLE_SYMBOLS]
    tried = zstandard.ZstdCompressor(level=3).compress(middle)
    return len(tried) / SAMPLE_SYMBOLS < 1.05 * best_bytes / len(packed)


def _shares(levels: Symbols) -> NDArray[np.float32]:
    """Return the frequencies that levels stand for; they alone enter, so that reader and writer have
    the same table.
    """
    weights = np.where(
        levels > 0, np.exp2((levels.astype(np.float64) - 255) / STEPS_PER_OCTAVE), 0.0
    )
    shares: NDArray[np.float32] = (weights / weights.sum()).astype(np.float32)
    return shares


def _model(levels: Symbols) -> Any:
    from constriction import stream  # type: ignore[attr-defined]

    return stream.model.Categorical(_shares(levels), perfect=False)


def _levels(counts: NDArray[np.float64]) -> Symbols:
    """Return frequencies as one byte each: twelfths of an octave below the most frequent one, 255.

    0 stands for symbols that never occur.
    """
    with np.errstate(divide="ignore"):
        below = np.round(STEPS_PER_OCTAVE * np.log2(counts.max() / counts))
    return np.where(counts > 0, np.maximum(255 - below, 1), 0).astype(np.uint8)


def _range_encode(symbols: Symbols, alphabet: int) -> bytes:
    from constriction import stream  # type: ignore[attr-defined]

    levels = _levels(np.bincount(symbols, minlength=max(alphabet, 2)).astype(np.float64))
    encoder = stream.queue.RangeEncoder()
    encoder.encode(symbols.astype(np.int32), _model(levels))
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return levels.tobytes() + words


def _range_decode(body: memoryview, alphabet: int, count: int) -> Symbols:
    size = max(alphabet, 2)
    levels = np.frombuffer(body[:size], np.uint8)
    if len(levels) < size:
        raise CheckpointError(
            "a range-coded stream is cut short; the file is damaged, restore it from a copy"
        )
    return open_stream(body[size:]).decode(_shares(levels), count)


def size_classes(codes: NDArray[np.int8]) -> tuple[Symbols, Symbols]:
    """Return the class of each row and column by the RMS of its codes, thirds of an octave apart.

    The sum of the two classes stands for the size of a code, as the product of the two sizes does.
    """
    squares = codes.astype(np.float32) ** 2
    total = max(float(squares.mean()), 1e-12)
    by_row, by_column = squares.mean(1), squares.mean(0) / total
    return _octave_class(by_row), _octave_class(by_column)


def _octave_class(mean_square: NDArray[np.float32]) -> Symbols:
    level = np.round(CLASSES_PER_OCTAVE * 0.5 * np.log2(np.maximum(mean_square, 1e-6)))
    return np.clip(level + MIDDLE_CLASS, 0, 2 * MIDDLE_CLASS).astype(np.uint8)


def compress_blocks(codes: NDArray[np.int8], by_row: Symbols, by_column: Symbols) -> bytes:
    """Range-code integers (rows, columns) with one table per sum of row class and column class.

    Lossless.

    A table holds the frequencies of the sizes |code|: both signs are taken to be equally likely.
    """
    from constriction import stream  # type: ignore[attr-defined]

    blocks = [
        (key, codes[np.ix_(rows, columns)].ravel())
        for key, rows, columns in _blocks(by_row, by_column)
    ]
    # Blocks with one sum of classes share a table: their codes are of one size.
    counts: dict[int, NDArray[np.int64]] = {}
    for key, block in blocks:
        sizes = np.bincount(block.view(np.uint8), minlength=256)
        # Read as bytes, -1 is 255 and -128 is 128: the upper half, reversed, counts sizes 1 to 128.
        folded = np.append(sizes[:128], 0)
        folded[1:129] += sizes[:127:-1]
        counts[key] = counts.get(key, np.zeros(129, np.int64)) + folded
    tables = {key: _size_table(count) for key, count in sorted(counts.items())}
    encoder = stream.queue.RangeEncoder()
    for key, block in blocks:
        table = tables[key]
        if len(table) > 1:
            encoder.encode(block.astype(np.int32) + (len(table) - 1), _model(_both_signs(table)))
    stored = b"".join(
        bytes([key, len(table) - 1]) + table.tobytes() for key, table in tables.items()
    )
    packed = zlib.compress(stored, 9)
    words: bytes = encoder.get_compressed().astype("<u4").tobytes()
    return len(packed).to_bytes(4, "little") + packed + words


def expand_blocks(data: bytes, by_row: Symbols, by_column: Symbols) -> NDArray[np.int8]:
    """Return the integers that `compress_blocks` was given.

    Raises CheckpointError when `data` cannot be theirs.
    """
    size = int.from_bytes(data[:4], "little")
    tables = _read_tables(data[4 : 4 + size])
    decoder = open_stream(data[4 + size :])
    shares = {key: _shares(_both_signs(table)) for key, table in tables.items()}
    codes = np.zeros((len(by_row), len(by_column)), np.int8)
    for key, rows, columns in _blocks(by_row, by_column):
        top = len(tables[key]) - 1
        if top > 0:
            block = decoder.decode(shares[key], len(rows) * len(columns))
            # Modulo 256, as int8 reads bytes.
            signed = (block - np.uint8(top)).view(np.int8)
            codes[np.ix_(rows, columns)] = signed.reshape(len(rows), len(columns))
    return codes


def _blocks(
    by_row: Symbols, by_column: Symbols
) -> list[tuple[int, NDArray[np.intp], NDArray[np.intp]]]:
    """Return (sum of the classes, rows, columns) of every pair of classes, in order."""
    rows = [(int(c), np.flatnonzero(by_row == c)) for c in np.unique(by_row)]
    columns = [(int(c), np.flatnonzero(by_column == c)) for c in np.unique(by_column)]
    return [(a + b, r, c) for a, r in rows for b, c in columns]


def _size_table(counts: NDArray[np.int64]) -> Symbols:
    """Return the levels (see `_levels`) of one signed code of each size, up to the largest size."""
    top = int(np.flatnonzero(counts).max())
    signed = counts[: top + 1].astype(np.float64)
    signed[1:] /= 2
    return _levels(signed)


def _both_signs(table: Symbols) -> Symbols:
    """Return the table of codes -top .. top."""
    return np.concatenate([table[:0:-1], table])


def _read_tables(packed: bytes) -> dict[int, Symbols]:
    stored = np.frombuffer(zlib.decompress(packed), np.uint8)
    tables, position = {}, 0
    while position < len(stored):
        key, top = int(stored[position]), int(stored[position + 1])
        tables[key] = stored[position + 2 : position + 3 + top]
        position += 3 + top
    return tables
