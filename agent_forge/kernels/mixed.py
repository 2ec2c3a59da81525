"""Integers of mixed widths: a block of 16 rows and 64 columns has the bits that its largest code
needs.

The layout of water-filled matrices, whose codes differ in size by row and column. Columns are put
in an order that brings codes of like size together. A block of width w (0 to 8 bits) holds code +
2^(w-1) in binary planes of 4, 2 and 1 bits (or whole bytes), 32 columns per step; each plane lies
in cache lines of 16 rows times 4 columns times 8 / bits parts. mixed.h draws the layout and
multiplies with it. Reads and writes numpy arrays.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
# rows and columns of a block, columns of a step, bytes of a cache line
ROWS, GROUP, STEP, LINE = 16, 64, 32, 64
BYTE = 8
# Scales of a group's columns may span so many octaves: 13 of an activation's 16 bits are then left
# for the column with the least scale.
EVEN_OCTAVES = 3
PLANES = (4, 2, 1)
SLAB_ROWS = 2048  # rows laid out at a time


def padded_columns(columns: int) -> int:
    """Return the columns of a row in the layout."""
    return -(-columns // STEP) * STEP


def group_columns(columns: int) -> Array:
    """Return the columns of every group in the layout, (groups,): GROUP, and what is left for the
    last.
    """
    padded = padded_columns(columns)
    return np.minimum(GROUP, padded - np.arange(0, padded, GROUP))


def evened(codes: Array, scales: Array, order: Array) -> tuple[Array, Array]:
    """Return codes and column scales (columns,) with the same products, but closer scales within a
    group.

    Activations are rounded with one step per group, set by the largest product with a column scale.
    A scale of more than 2^EVEN_OCTAVES times the least of its group is therefore halved and its
    codes doubled, as often as int8 allows; a column of zeros gets the scale 0. Both are exact.
    Without such columns nothing changes.
    """
    largest = np.maximum(np.abs(codes.min(0).astype(np.int16)), codes.max(0))
    room = 7 - np.array([int(n).bit_length() for n in range(129)])[largest]
    # Columns of zeros do not count: their scale has no effect on products.
    used = np.where(largest > 0, scales, np.inf)
    least = np.minimum.reduceat(used[order], np.arange(0, len(order), GROUP))
    least[np.isinf(least)] = 1  # a group of zeros
    octaves = np.empty(len(order))
    octaves[order] = np.floor(np.log2(scales[order] / np.repeat(least, GROUP)[: len(order)]))
    excess = np.maximum(octaves - EVEN_OCTAVES, 0)
    halvings = np.minimum(excess, np.maximum(room, 0)).astype(np.int8)
    halvings[largest == 0] = 0
    if halvings.any():
        codes = codes << halvings
    evened_scales = np.where(
        (largest == 0) & (excess > 0), 0, scales * np.exp2(-halvings.astype(np.float32))
    )
    return codes, evened_scales.astype(np.float32)


def pack(codes: Array, order: Array) -> dict[str, Array]:
    """Lay out codes (rows, columns) int8 with their columns in `order` (columns,).

    Returns codes (bytes,) uint8, widths (tiles, groups) uint8 and starts (tiles,) uint32 in cache
    lines.
    """
    rows = len(codes)
    tiles, sizes = -(-rows // ROWS), group_columns(codes.shape[1])
    widths = np.empty((tiles, len(sizes)), np.uint8)
    slabs = []
    for first in range(0, rows, SLAB_ROWS):
        blocks = _blocks(codes[first : first + SLAB_ROWS], order)
        own = _widths(blocks)
        widths[first // ROWS : first // ROWS + len(own)] = own
        slabs.append(_packed_slab(blocks, own, sizes))
    lines = _lines(widths, sizes)
    packed = _aligned(int(lines.sum()) * LINE)
    np.concatenate(slabs, out=packed)
    ends = np.cumsum(lines.sum(1))
    return {"codes": packed, "widths": widths, "starts": (ends - lines.sum(1)).astype(np.uint32)}


def unpack(arrays: Mapping[str, Array], tiles: Array, columns: int) -> Array:
    """Return the codes of some tiles: (tiles * ROWS, columns) int8, columns in layout order."""
    sizes, widths = group_columns(columns), arrays["widths"][tiles]
    lines = _lines(widths, sizes)
    starts = (
        arrays["starts"][tiles].astype(np.int64)[:, None] + np.cumsum(lines, axis=1) - lines
    ) * LINE
    codes = np.zeros((len(tiles), ROWS, padded_columns(columns)), np.int8)
    for width, size, places in _alike(widths, sizes):
        tile, group = places
        count = int(size) * ROWS * width // 8
        data = arrays["codes"][starts[places][:, None] + np.arange(count)]
        at = group[:, None] * GROUP + np.arange(size)
        codes[tile[:, None], :, at] = _unpacked_blocks(data, width, int(size)).transpose(0, 2, 1)
    return codes.reshape(-1, padded_columns(columns))[:, :columns]


def _aligned(size_bytes: int) -> Array:
    """Return uninitialised bytes that begin at a cache line.

    One line more is reserved, so that the address of 0 bytes is valid too.
    """
    memory = np.empty(size_bytes + 2 * LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size_bytes]


def _blocks(codes: Array, order: Array) -> Array:
    """Return codes (rows, columns) as (tiles, ROWS, padded): columns in order, then zeros."""
    rows, columns = codes.shape
    padded = np.zeros((-(-rows // ROWS) * ROWS, padded_columns(columns)), np.int8)
    padded[:rows, :columns] = codes[:, order]
    return padded.reshape(-1, ROWS, padded.shape[1])


def _widths(blocks: Array) -> Array:
    """Return the bits of each block (tiles, groups): a sign bit and what its largest code needs.

    A block of zeros has 0 bits.
    """
    # Width w holds -2^(w-1) to 2^(w-1) - 1, so q and -q - 1 need the same bits.
    sizes = blocks ^ (blocks >> 7)
    by_column = sizes.max(1)
    starts = np.arange(0, blocks.shape[2], GROUP)
    largest = np.maximum.reduceat(by_column, starts, axis=1).astype(np.uint8)
    is_empty = np.logical_and.reduceat((blocks == 0).all(1), starts, axis=1)
    bits = np.array([1, *(int(n).bit_length() + 1 for n in range(1, 128))], np.uint8)
    widths: Array = np.where(is_empty, 0, bits[largest]).astype(np.uint8)
    return widths


def _lines(widths: Array, sizes: Array) -> Array:
    """Return the cache lines of every block: (tiles, groups)."""
    lines: Array = widths.astype(np.int64) * (sizes // STEP)
    return lines


def _alike(widths: Array, sizes: Array) -> Iterator[tuple[int, int, tuple[Array, Array]]]:
    """Yield (width, columns, (tiles, groups)) of blocks of one width and size, except blocks of 0
    bits.

    Blocks that are alike are packed together, by one operation on arrays.
    """
    for size in np.unique(sizes):
        for width in np.unique(widths):
            tile, group = np.nonzero((widths == width) & (sizes == size))
            if width and len(tile):
                yield int(width), int(size), (tile, group)


def _planes(width: int) -> tuple[int, ...]:
    """Return the bits of the planes of a width."""
    return (BYTE,) if width == BYTE else tuple(plane for plane in PLANES if width & plane)


def _packed_slab(blocks: Array, widths: Array, sizes: Array) -> Array:
    lines = _lines(widths, sizes)
    packed = np.empty(int(lines.sum()) * LINE, np.uint8)
    starts = (np.cumsum(lines) - lines.ravel()).reshape(lines.shape) * LINE
    for width, size, places in _alike(widths, sizes):
        tile, group = places
        at = group[:, None] * GROUP + np.arange(size)
        data = _packed_blocks(blocks[tile[:, None], :, at].transpose(0, 2, 1), width)
        packed[starts[places][:, None] + np.arange(data.shape[1])] = data
    return packed


def _packed_blocks(codes: Array, width: int) -> Array:
    """Return codes (n, ROWS, columns) of one width as (n, bytes)."""
    values = (codes.astype(np.int16) + (1 << (width - 1))).astype(np.uint8)
    # mixed.h draws the planes: the 4-bit plane first, with the lowest bits of the code.
    steps = values.reshape(len(codes), ROWS, -1, STEP)
    planes = []
    below = 0
    for bits in _planes(width):
        digits = steps >> np.uint8(below) & np.uint8((1 << bits) - 1)
        parts = digits.reshape(*steps.shape[:3], STEP * bits // 32, 8 // bits, 4).transpose(
            0, 2, 3, 1, 5, 4
        )
        shifts = np.arange(0, 8, bits, dtype=np.uint8)  # (n, steps, lines, ROWS, 4, parts)
        planes.append(
            np.bitwise_or.reduce(parts << shifts, axis=-1).reshape(len(codes), steps.shape[2], -1)
        )
        below += bits
    return np.concatenate(planes, axis=2).reshape(len(codes), -1)


def _unpacked_blocks(data: Array, width: int, columns: int) -> Array:
    """Undo `_packed_blocks`: (n, ROWS, columns) int8."""
    steps = data.reshape(len(data), columns // STEP, -1)
    values = np.zeros((len(data), ROWS, columns // STEP, STEP), np.uint8)
    below = first = 0
    for bits in _planes(width):
        count = bits * STEP * ROWS // 8
        lines = steps[:, :, first : first + count].reshape(*steps.shape[:2], -1, ROWS, 4, 1)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        digits = (lines >> shifts & np.uint8((1 << bits) - 1)).transpose(0, 3, 1, 2, 5, 4)
        values |= digits.reshape(values.shape) << np.uint8(below)
        below, first = below + bits, first + count
    codes: Array = (values.astype(np.int16) - (1 << (width - 1))).astype(np.int8)
    return codes.reshape(len(data), ROWS, columns)
