"""One matrix in the layout of engine.c: codes in tiles of 16 rows, with scales and zero points per
group.

Made from the payload of any codec. Ternary and k-bit integers keep their codes (in 2, 4 or 8 bits)
and VPTQ its indices, those into a residual codebook too: rows taken are exactly the numbers that
the codec decodes. Floats stay floats. What has no layout of its own (hyper, seedlm, VPTQ with
outlier columns) is decoded once, at load, into float16 with one scale per row: 16 bits per weight.
product.h, vq.h and mixed.h draw the layouts.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.codecs.payload import Payload
from agent_forge.core.errors import PhaseError
from agent_forge.kernels import build, mixed, native

Array = NDArray[Any]
KINDS = ("codes", "vq", "floats", "mixed")
FORMATS = ("float32", "float16", "bfloat16")  # formats of scales, and of the values of kind floats
ROWS, VQ_ROWS, CENTROIDS, STEP = 16, 64, 256, 16
# A step of the activations is shared by at most so many indices of a row, and so many columns.
VQ_BLOCK, VQ_BLOCK_COLUMNS = 16, 64
SLAB_ROWS = 2048  # rows that are laid out, or decoded by the portable path, at a time
# Row 16 k + 4 l + e of a VQ tile stands at byte 16 l + 4 k + e: where the byte shuffles of engine.c
# leave it.
VQ_ORDER = np.arange(VQ_ROWS).reshape(4, 4, 4).transpose(1, 0, 2).reshape(-1)
ACTIVATION_BITS = tuple(b for b in range(16) if b != 1)
# Steps of the stored column scales. codecs.waterfill has the same number, but it imports torch.
WATERFILL_LEVELS_PER_OCTAVE = 8


@dataclass(slots=True, kw_only=True)
class Layout:
    """The shape of a packed matrix and of its codes. vector: columns per index, for vq.

    bits: the bits of a code; for vq of the indices into all codebooks; for floats the index of
    their format in FORMATS.
    """

    kind: str
    rows: int
    columns: int
    bits: int = 0
    group: int = 0
    scale_format: str = "float32"
    zero: int = 0
    vector: int = 1
    activation_bits: int = 0

    @property
    def stages(self) -> int:
        """Return how many codebooks a vq matrix has, one per index of 8 bits."""
        return 2 if self.bits > 8 else 1

    @property
    def block(self) -> int:
        """Return how many indices of a row of a vq matrix have activations that share a step."""
        return min(VQ_BLOCK, max(1, VQ_BLOCK_COLUMNS // self.vector))

    @property
    def groups(self) -> int:
        """Return the scales per row; for vq the steps of its activations."""
        if self.kind == "vq":
            return -(-self.columns // (self.block * self.vector))
        return -(-self.columns // self.group)

    @property
    def padded_group(self) -> int:
        """Return the columns of a group in the layout."""
        return -(-self.group // STEP) * STEP

    @property
    def padded(self) -> int:
        """Return the columns of a row, or the activations of a token, in the layout."""
        if self.kind == "vq":
            return self.groups * self.block * -(-self.vector // 2) * 2
        if self.kind == "mixed":
            return mixed.padded_columns(self.columns)
        last = self.columns - self.group * (self.groups - 1)
        return self.padded_group * (self.groups - 1) + -(-last // STEP) * STEP

    def places(self) -> Array:
        """Return where each column stands in the layout: (columns,) int64."""
        column = np.arange(self.columns)
        return column // self.group * self.padded_group + column % self.group


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix (rows, columns) as engine.c reads it.

    arrays: codes and scales, and what else the kind has, by the names of the pointers in
    MatrixStruct.
    """

    layout: Layout
    arrays: Mapping[str, Array]
    bias: Array | None = field(default=None)

    @cached_property
    def struct(self) -> native.MatrixStruct:
        """Return the structure of engine.c; it points into the arrays of this matrix."""
        one = self.layout
        coded = one.kind in ("codes", "mixed")
        return native.MatrixStruct(
            kind=KINDS.index(one.kind),
            bits=one.bits,
            rows=one.rows,
            columns=one.columns,
            group=one.group,
            padded_group=one.padded_group if coded else 0,
            groups=one.groups if one.kind != "floats" else 0,
            padded=one.padded if one.kind != "floats" else one.columns,
            activation_top=2 ** (one.activation_bits - 1) - 1 if one.activation_bits else 0,
            scale_kind=FORMATS.index(one.scale_format),
            zero=one.zero,
            vector=one.vector,
            bias=native.pointer(self.bias),
            **{name: native.pointer(array) for name, array in self.arrays.items()},
        )

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def multiply(self, x: Array, threads: int = 0) -> Array:
        """Return x (T, columns) float32 times the matrix, plus the bias: (T, rows) float32."""
        x = np.ascontiguousarray(x, np.float32)
        if x.ndim != 2 or x.shape[1] != self.layout.columns:
            raise PhaseError(
                f"a matrix of {self.layout.columns} columns cannot take inputs of shape {x.shape}"
            )
        if build.library() is None:
            return self._multiply_in_blocks(round_activations(x, self.layout.activation_bits))
        out = np.empty((len(x), self.layout.rows), np.float32)
        if len(x):
            native.pool(threads).matmul(self.struct, x, out)
        return out

    def take(self, rows: Array) -> Array:
        """Return the rows named by `rows` (n,), float32."""
        rows = np.ascontiguousarray(rows, np.int32)
        if rows.size and not (rows.min() >= 0 and rows.max() < self.layout.rows):
            raise PhaseError(
                f"a matrix of {self.layout.rows} rows has no row {rows.min()} to {rows.max()}"
            )
        if build.library() is None:
            return self.decoded(rows)
        out = np.empty((len(rows), self.layout.columns), np.float32)
        native.rows(self.struct, rows, out)
        return out

    def decoded(self, rows: Array) -> Array:
        """Return the rows named by `rows` (n,) as float32, computed by numpy."""
        one, arrays = self.layout, self.arrays
        if one.kind == "floats":
            values = _as_float32(arrays["codes"][rows], FORMATS[one.bits])
            return values * arrays["scales"][rows, None] if "scales" in arrays else values
        if one.kind == "vq":
            place = np.argsort(VQ_ORDER)[rows % VQ_ROWS]
            indices = arrays["codes"][rows // VQ_ROWS, :, place]  # (n, positions * stages)
            books = np.split(arrays["codebook"], one.stages)
            entries = [book.T[indices[:, stage :: one.stages]] for stage, book in enumerate(books)]
            values = np.sum(entries, axis=0).reshape(len(rows), -1)[:, : one.columns]
            return np.ascontiguousarray(values * arrays["scales"][rows, None])
        tile, lane = rows // ROWS, rows % ROWS
        if one.kind == "mixed":
            return self._decoded_mixed(tile, lane)
        packed = arrays["codes"][tile, :, lane]  # (n, blocks, 4)
        parts = [
            packed >> np.uint8(one.bits * i) & np.uint8(2**one.bits - 1)
            for i in range(8 // one.bits)
        ]
        codes = np.stack(parts, axis=2).reshape(len(rows), -1)[:, one.places()].astype(np.float32)
        scales = _as_float32(arrays["scales"][tile, :, lane], one.scale_format)
        group = np.arange(one.columns) // one.group
        codes -= (
            arrays["zeros"][tile, :, lane].astype(np.float32)[:, group]
            if "zeros" in arrays
            else np.float32(one.zero)
        )
        products: Array = codes * scales[:, group]
        return products

    def _decoded_mixed(self, tile: Array, lane: Array) -> Array:
        one, arrays = self.layout, self.arrays
        tiles, place = np.unique(tile, return_inverse=True)
        codes = mixed.unpack(arrays, tiles, one.columns)[place * ROWS + lane].astype(np.float32)
        values = np.empty_like(codes)
        values[:, arrays["order"][: one.columns]] = codes * arrays["column_scales"][: one.columns]
        decoded: Array = values * arrays["scales"][tile, lane, None]
        return decoded

    def _multiply_in_blocks(self, x: Array) -> Array:
        out = np.empty((len(x), self.layout.rows), np.float32)
        # In blocks of rows, so that the dense matrix never exists as a whole.
        for first in range(0, self.layout.rows, SLAB_ROWS):
            rows = np.arange(first, min(first + SLAB_ROWS, self.layout.rows))
            out[:, first : first + len(rows)] = x @ self.decoded(rows).T
        return out if self.bias is None else out + self.bias

    def with_bias(self, bias: Array | None) -> "PackedMatrix":
        """Return the matrix with this bias (rows,) float32."""
        return replace(self, bias=None if bias is None else np.ascontiguousarray(bias, np.float32))


def round_activations(x: Array, bits: int) -> Array:
    """Round x (T, columns) as a layer with `activation_bits` does, by each token's largest size.

    0 bits leave x as it is.
    """
    if not bits:
        return x
    step = np.maximum(np.abs(x).max(1, keepdims=True), np.float32(1e-5)) / np.float32(
        2 ** (bits - 1) - 1
    )
    rounded: Array = (np.rint(x / step) * step).astype(np.float32)
    return rounded


def has_layout(coded: Payload) -> bool:
    """Return whether the codes stay codes: not in hyper, seedlm, and VPTQ with outlier columns."""
    return coded.codec not in ("hyper", "seedlm") and not (
        coded.codec == "vptq" and "o" in coded.parts
    )


def from_payload(coded: Payload, activation_bits: int = 0) -> PackedMatrix:
    """Lay out what a codec wrote.

    activation_bits: bits of the layer's input, 0 where it is not rounded.

    Raises PhaseError for activations of 16 bits, which two planes of int8 do not hold.
    """
    if activation_bits not in ACTIVATION_BITS:
        raise PhaseError(
            f"packed inference holds activations of up to 15 bits, got {activation_bits}; use "
            "engine=torch"
        )
    parts = coded.parts
    if coded.codec == "ternary":
        scales, form = (parts["b"], "bfloat16") if "b" in parts else _narrowest(parts["s"])
        return from_codes(
            parts["q"], scales, form, group=coded.meta["g"], zero=1, activation_bits=activation_bits
        )
    if coded.codec == "intk":
        zero = 2 ** (coded.meta["k"] - 1)
        return from_codes(
            parts["q"], parts["s"].view(np.uint16), "float16", group=coded.meta["g"], zero=zero,
            zeros=parts.get("z"), activation_bits=activation_bits,
        )  # fmt: skip
    if coded.codec == "vptq" and has_layout(coded):
        stages = [(parts["i"], parts["c"]), *([(parts["r"], parts["d"])] if "r" in parts else ())]
        return from_indices(stages, parts["s"], coded.shape[1], activation_bits)
    if coded.codec == "waterfill":
        from agent_forge.codecs import entropy

        codes = entropy.expand_blocks(parts["q"].tobytes(), parts["a"], parts["b"])
        rows = parts["s"].astype(np.float32) * np.float32(2.0 ** coded.meta["u"])
        columns = np.exp2(
            (parts["c"].astype(np.float32) - 128) / WATERFILL_LEVELS_PER_OCTAVE
        ).astype(np.float32)
        return from_scaled_codes(codes, rows, columns, activation_bits)
    if coded.codec == "raw":
        values = parts["w"].view(np.float32) if coded.meta["t"] == "float32" else parts["w"]
        return from_floats(values, coded.meta["t"], activation_bits)
    from agent_forge import codecs  # torch, for the codecs without a layout

    return from_dense(codecs.decode(coded).numpy(), activation_bits)


def from_codes(
    codes: Array,
    scales: Array,
    scale_format: str,
    *,
    group: int,
    zero: int = 0,
    zeros: Array | None = None,
    activation_bits: int = 0,
) -> PackedMatrix:
    """Lay out codes (rows, columns) uint8 with weight (code - zero) * scale.

    scales: (rows, groups), float32 or the bit patterns of float16 or bfloat16; zeros: (rows,
    groups) uint8, or `zero` for all.
    """
    rows, columns = codes.shape
    if zeros is None:
        # A narrow range of codes fits fewer bits once it begins at 0.
        lowest = int(codes.min())
        zero -= lowest
    else:
        lowest = 0
    top = int(codes.max()) - lowest
    bits = 2 if top < 4 else 4 if top < 16 else 8
    layout = Layout(
        kind="codes", rows=rows, columns=columns, bits=bits, group=group, scale_format=scale_format,
        zero=zero, activation_bits=activation_bits,
    )  # fmt: skip
    tiles = -(-rows // ROWS)
    packed = aligned((tiles, layout.padded * bits // 32, ROWS, 4))
    for first in range(0, rows, SLAB_ROWS):
        slab = codes[first : first + SLAB_ROWS]
        packed[first // ROWS : -(-min(first + SLAB_ROWS, rows) // ROWS)] = _tiled(
            slab - np.uint8(lowest) if lowest else slab, layout
        )
    arrays: dict[str, Array] = {"codes": packed, "scales": _tiled_groups(scales)}
    if zeros is not None:
        arrays["zeros"] = _tiled_groups(zeros)
    return PackedMatrix(layout, arrays)


def from_scaled_codes(
    codes: Array, rows: Array, columns: Array, activation_bits: int = 0
) -> PackedMatrix:
    """Lay out codes (rows, columns) int8 with float32 scales of the rows (rows,) and columns
    (columns,).
    """
    layout = Layout(
        kind="mixed",
        rows=codes.shape[0],
        columns=codes.shape[1],
        group=mixed.GROUP,
        activation_bits=activation_bits,
    )
    order = np.argsort(columns, kind="stable")
    codes, columns = mixed.evened(codes, columns, order)
    padding = (0, layout.padded - layout.columns)
    arrays = {
        **mixed.pack(codes, order),
        "scales": np.pad(rows.astype(np.float32), (0, -len(rows) % ROWS)).reshape(-1, ROWS),
        "column_scales": np.pad(columns[order].astype(np.float32), padding),
        "order": np.pad(order.astype(np.int32), padding),
    }
    return PackedMatrix(layout, arrays)


def aligned(shape: tuple[int, ...]) -> Array:
    """Return an uninitialised uint8 array that begins at a cache line.

    No load of a line's size then crosses into a second line.
    """
    size = math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    first = -memory.ctypes.data % 64
    return memory[first : first + size].reshape(shape)


def _tiled(codes: Array, layout: Layout) -> Array:
    """Return codes (rows, columns) as (tiles, blocks, ROWS, 4) bytes, as product.h draws them.

    A byte holds 8 / bits codes of columns that lie 4 apart.
    """
    rows, bits, parts = len(codes), layout.bits, 8 // layout.bits
    if rows % ROWS == 0 and layout.padded == layout.columns:
        padded = np.ascontiguousarray(codes)
    else:
        padded = np.zeros((-(-rows // ROWS) * ROWS, layout.padded), np.uint8)
        padded[:rows, layout.places()] = codes
    # Four codes at once, as one word: no code is shifted out of its byte.
    words = padded.view(np.uint32).reshape(-1, ROWS, layout.padded // (4 * parts), parts)
    packed = words[..., 0]
    for part in range(1, parts):
        packed = packed | words[..., part] << np.uint32(bits * part)
    tiles: Array = np.ascontiguousarray(packed.transpose(0, 2, 1))[..., None].view(np.uint8)
    return tiles


def _tiled_groups(values: Array) -> Array:
    """Return (rows, groups) as (tiles, groups, ROWS)."""
    rows, groups = values.shape
    padded = np.zeros((-(-rows // ROWS) * ROWS, groups), values.dtype)
    padded[:rows] = values
    return np.ascontiguousarray(padded.reshape(-1, ROWS, groups).transpose(0, 2, 1))


def from_indices(
    stages: Sequence[tuple[Array, Array]], scales: Array, columns: int, activation_bits: int = 0
) -> PackedMatrix:
    """Lay out VPTQ; the indices of a tile are put in the order that vq.h draws.

    stages: one or two of (indices (rows, positions) uint8, codebook (k, v)), which add up. scales:
    (rows,).
    """
    rows, positions = stages[0][0].shape
    vector = stages[0][1].shape[1]
    padded = np.zeros((-(-rows // VQ_ROWS) * VQ_ROWS, positions, len(stages)), np.uint8)
    entries = np.zeros((len(stages), vector, CENTROIDS), np.float32)
    for stage, (indices, codebook) in enumerate(stages):
        padded[:rows, :, stage] = indices
        entries[stage, :, : len(codebook)] = codebook.astype(np.float32).T
    tiles = padded.reshape(-1, VQ_ROWS, positions * len(stages))[:, VQ_ORDER].transpose(0, 2, 1)
    layout = Layout(
        kind="vq", rows=rows, columns=columns, bits=8 * len(stages), vector=vector,
        activation_bits=activation_bits,
    )  # fmt: skip
    codes = aligned(tiles.shape)
    codes[:] = tiles
    arrays = {
        "codes": codes,
        "scales": scales.astype(np.float32),
        "codebook": entries.reshape(-1, CENTROIDS),
    }
    return PackedMatrix(layout, arrays)


def from_floats(values: Array, dtype: str, activation_bits: int = 0) -> PackedMatrix:
    """Take values (rows, columns), float32 or bit patterns of 16-bit floats, as they are.

    Memory-mapped values stay in their file.
    """
    layout = Layout(
        kind="floats", rows=values.shape[0], columns=values.shape[1], bits=FORMATS.index(dtype),
        activation_bits=activation_bits,
    )  # fmt: skip
    return PackedMatrix(layout, {"codes": np.ascontiguousarray(values)})


def from_dense(weight: Array, activation_bits: int = 0) -> PackedMatrix:
    """Keep a float32 matrix as float16 with one scale per row.

    Each weight that is not tiny is kept within 5e-4 of itself.
    """
    scales = np.maximum(np.abs(weight).max(1), 1e-30).astype(np.float32)
    values = (weight / scales[:, None]).astype(np.float16).view(np.uint16)
    packed = from_floats(values, "float16", activation_bits)
    return PackedMatrix(packed.layout, {**packed.arrays, "scales": scales})


def _narrowest(scales: Array) -> tuple[Array, str]:
    """Return scales in float16 when that loses nothing, else in float32."""
    if scales.dtype == np.float16:
        return scales.view(np.uint16), "float16"
    return scales.astype(np.float32), "float32"


def _as_float32(values: Array, form: str) -> Array:
    """Return stored floats, or their bit patterns, as float32."""
    if form == "float32":
        return values.astype(np.float32)
    if form == "float16":
        return values.view(np.float16).astype(np.float32)
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
