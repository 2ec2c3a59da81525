"""Embeddings and heads of ternary models, rounded to int8, int4 or -1, 0, +1 while latents train.

`RoundedEmbedding` and `RoundedHead` keep a latent float `weight`, which they may share. They
compute with integers times one bfloat16 step per group of columns in a row (absmax / 127 or
absmax / 7; mean|W| at 2 bits, as in the ternary layers); gradients pass straight through. At 8 and
4 bits, rounding a second time changes nothing, so weights on the grid stay there bit for bit.
Reads and writes no file.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from agent_forge.config.ternary import TERNARY_BITS, CodeGrid
from agent_forge.core.errors import CheckpointError
from agent_forge.models.scaled_embedding import scaled
from agent_forge.models.ternary.codes import latents_for, straight_through


def grid(weight: Tensor, bits: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return codes (..., width) int8 and steps (..., groups) bfloat16 of weight (..., width).

    columns: how many columns share a step; 0 means the whole row. The last group may be smaller. A
    group of zeros has the step 0.
    """
    top = 2 ** (bits - 1) - 1
    blocks = _blocks(weight, columns).float()
    if bits == TERNARY_BITS:
        # What fills up the last group is zero and does not count.
        counts = _blocks(blocks.new_ones(weight.shape[-1]), columns).sum(-1)
        steps = (blocks.abs().sum(-1) / counts).to(torch.bfloat16)
    else:
        steps = (blocks.abs().amax(-1) / top).to(torch.bfloat16)
    codes = (blocks / steps.float().clamp_min(1e-30)[..., None]).round().clamp(-top, top)
    return codes.to(torch.int8).flatten(-2)[..., : weight.shape[-1]], steps


def values(codes: Tensor, steps: Tensor, columns: int) -> Tensor:
    """Return codes (..., width) times their groups' steps (..., groups), as float32."""
    wide = steps.float().repeat_interleave(columns or codes.shape[-1], dim=-1)
    return codes.float() * wide[..., : codes.shape[-1]]


def rounded(weight: Tensor, bits: int, columns: int) -> Tensor:
    """Return weight (..., width) on its grid, in its dtype."""
    return values(*grid(weight, bits, columns), columns).to(weight.dtype)


def _blocks(weight: Tensor, columns: int) -> Tensor:
    columns = columns or weight.shape[-1]
    return functional.pad(weight, (0, -weight.shape[-1] % columns)).unflatten(-1, (-1, columns))


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes (rows, width) int8 as uint8 (rows, bytes): one, two or four codes per byte."""
    if bits == 8:
        return codes.view(torch.uint8)
    shifts = _shifts(bits, codes.device)
    whole = functional.pad(codes, (0, -codes.shape[1] % len(shifts))) + 2 ** (bits - 1)
    digits = whole.to(torch.uint8).unflatten(1, (-1, len(shifts)))
    return (digits << shifts).sum(-1, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, width: int) -> Tensor:
    """Return the codes of `pack`.

    Raises CheckpointError when the bytes per row do not fit the width.
    """
    if packed.shape[1] != packed_columns(width, bits):
        raise CheckpointError(
            f"{packed.shape[1]:,} bytes per row do not hold {width:,} codes of {bits} "
            "bits; the file is damaged"
        )
    if bits == 8:
        return packed.view(torch.int8)
    digits = packed[..., None] >> _shifts(bits, packed.device) & 2**bits - 1
    return digits.flatten(1)[:, :width].to(torch.int8) - 2 ** (bits - 1)


def _shifts(bits: int, device: torch.device) -> Tensor:
    """Return where the codes of a byte begin, the first one lowest: (8 // bits,) uint8."""
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=device)


def packed_columns(width: int, bits: int) -> int:
    """Return the bytes that a row of `width` codes takes."""
    return -(-width * bits // 8)


def codes_shape(grid: CodeGrid, rows: int, width: int) -> tuple[int, int]:
    """Return the shape of the packed bytes of a weight (rows, width)."""
    return (rows, packed_columns(width, grid.bits))


def scales_shape(grid: CodeGrid, rows: int, width: int) -> tuple[int, int]:
    """Return the shape of the steps of a weight (rows, width)."""
    return (rows, -(-width // (grid.columns or width)))


class _Rounded(nn.Module):
    """The common part of both layers: latents, and their rounded form, cached until they change."""

    weight: Tensor
    _kept: tuple[tuple[Any, ...], Tensor] | None = None

    def set_grid(self, grid: CodeGrid, source: "_Rounded | None" = None) -> None:
        """Set the grid.

        source: a layer with the same weight, whose rounded weight serves both.
        """
        self.grid = grid
        # The list hides the source from modules(), because it is not a part of this layer.
        self._source = [source] if source is not None else []

    def is_tied(self) -> bool:
        """Return whether this layer shares the weight of another by design."""
        return bool(self._source)

    def tied_to(self) -> "_Rounded":
        """Return that other layer."""
        return self._source[0]

    @torch.no_grad()
    def quantised_weight(self) -> Tensor:
        """Return the weight that the forward computes with, (rows, width)."""
        weight = self.weight
        if self._source and self._source[0].weight is weight:
            return self._source[0].quantised_weight()
        key = (weight.data_ptr(), weight._version, weight.dtype, weight.device)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._rounded(weight))
        return self._kept[1]

    def _rounded(self, rows: Tensor) -> Tensor:
        """Return rows (..., width) on the grid."""
        return rounded(rows, self.grid.bits, self.grid.columns)

    def packed_parts(self) -> tuple[Tensor, Tensor]:
        """Return packed codes (rows, bytes) uint8 and steps (rows, groups) bfloat16."""
        codes, steps = grid(self.weight.detach(), self.grid.bits, self.grid.columns)
        return pack(codes, self.grid.bits), steps

    def take_packed(self, packed: Tensor, steps: Tensor) -> None:
        """Set latents that round to exactly these codes and steps."""
        codes = unpack(packed, self.grid.bits, self.weight.shape[1])
        # Values of codes would have a smaller mean size than the step of ternary ones.
        make = latents_for if self.grid.bits == TERNARY_BITS else values
        self.weight = nn.Parameter(make(codes, steps, self.grid.columns))

    def packed_bytes(self) -> int:
        """Return the size of codes and steps in the packed file; 0 if another layer stores them."""
        if self._source and self._source[0].weight is self.weight:
            return 0
        rows, width = self.weight.shape
        codes, scales = codes_shape(self.grid, rows, width), scales_shape(self.grid, rows, width)
        return codes[0] * codes[1] + 2 * scales[0] * scales[1]

    def train(self, mode: bool = True) -> Self:
        """Set the mode, and drop the cached weight."""
        self._kept = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


class RoundedEmbedding(_Rounded, nn.Embedding):
    """An embedding whose rows are on the grid. row_factor: multiplies the rows after rounding."""

    row_factor = 1.0

    def forward(self, input: Tensor) -> Tensor:
        """Return the rounded rows (..., width) of token ids (...)."""
        rows = super().forward(input)
        with torch.no_grad():
            exact = self._rounded(rows)
        result: Tensor = straight_through(rows, exact) if rows.requires_grad else exact  # type: ignore[no-untyped-call]
        return scaled(result, self.row_factor)


class RoundedHead(_Rounded, nn.Linear):
    """An output layer whose weight is on the grid."""

    def forward(self, input: Tensor) -> Tensor:
        """Return input (..., width) times the rounded weight, (..., rows)."""
        return functional.linear(input, self.trained_weight(), self.bias)

    def trained_weight(self) -> Tensor:
        """Return the rounded weight; its gradient goes to the latents."""
        if not (torch.is_grad_enabled() and self.weight.requires_grad):
            return self.quantised_weight()
        # Never from the cache: a fused optimiser changes weights without a new version number.
        with torch.no_grad():
            weight = self._rounded(self.weight)
        through: Tensor = straight_through(self.weight, weight)  # type: ignore[no-untyped-call]
        return through
