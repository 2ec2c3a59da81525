"""Triton kernels: a few tokens times a coded matrix. Imported only where Triton is installed.

Shapes: T tokens, x (T, columns) of any float type, out (T, rows) float32. A program computes
BLOCK_ROWS rows of one token.
"""

import triton
import triton.language as tl


@triton.jit
def codes_kernel(
    x, codes, scales, zeros, out, rows, columns, groups, group, width,
    BITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_BYTES: tl.constexpr,
):  # fmt: skip
    """Fill out: weight = (code - zero) * scale, with one scale and one zero per row and group.

    codes: (rows, groups, width) uint8; byte j of a group holds, lowest bits first, its columns j, j
    + width, ...
    scales, zeros: (rows, groups) float32 and uint8. group: columns per group.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1)
    inside = row < rows
    long_row = row.to(tl.int64)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for g in range(groups):
        zero = tl.load(zeros + long_row * groups + g, mask=inside, other=0).to(tl.float32)
        part_total = tl.zeros((BLOCK_ROWS,), tl.float32)
        for first in range(0, width, BLOCK_BYTES):
            at = first + tl.arange(0, BLOCK_BYTES)
            place = codes + (long_row[:, None] * groups + g) * width + at[None, :]
            packed = tl.load(place, mask=inside[:, None] & (at < width)[None, :], other=0).to(
                tl.int32
            )
            for part in tl.static_range(8 // BITS):
                column = part * width + at
                real = (at < width) & (column < group) & (g * group + column < columns)
                activation = tl.load(
                    x + token * columns + g * group + column, mask=real, other=0
                ).to(tl.float32)
                code = (packed >> (part * BITS)) & ((1 << BITS) - 1)
                part_total += tl.sum((code.to(tl.float32) - zero[:, None]) * activation[None, :], 1)
        scale = tl.load(scales + long_row * groups + g, mask=inside, other=0)
        total += scale * part_total
    tl.store(out + token * rows + row, total, mask=inside)


@triton.jit
def vectors_kernel(
    x, indices, codebook, scales, out, rows, columns, positions,
    VECTOR: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_POSITIONS: tl.constexpr,
):  # fmt: skip
    """Fill out: VECTOR neighbouring weights of a row are a codebook entry times the row's scale.

    indices: (rows, positions) uint8; codebook: (entries, VECTOR) float32; scales: (rows,) float32.
    """
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    token = tl.program_id(1)
    inside = row < rows
    long_row = row.to(tl.int64)
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    for first in range(0, positions, BLOCK_POSITIONS):
        at = first + tl.arange(0, BLOCK_POSITIONS)
        held = inside[:, None] & (at < positions)[None, :]
        index = tl.load(
            indices + long_row[:, None] * positions + at[None, :], mask=held, other=0
        ).to(tl.int32)
        for part in tl.static_range(VECTOR):
            column = at * VECTOR + part
            real = (at < positions) & (column < columns)
            activation = tl.load(x + token * columns + column, mask=real, other=0).to(tl.float32)
            weight = tl.load(codebook + index * VECTOR + part, mask=held, other=0)
            total += tl.sum(weight * activation[None, :], 1)
    total *= tl.load(scales + row, mask=inside, other=0)
    tl.store(out + token * rows + row, total, mask=inside)
