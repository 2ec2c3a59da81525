"""Ternary weights of which, in every four of a row, exactly one is zero: codes, latents and bytes.

Four such weights have 4 places for the zero and 8 choices of signs: 32 in all, 5 bits, 1.25 bits
per weight. The zero is the weight of least size, and the scale of a group is the mean size of the
others; no other choice of that form has a smaller squared error. Where the columns of a row are no
multiple of four, its last one to three weights are never zero. Source: Sherry, arXiv:2601.07892
(there with one scale per row or tensor, and a residual that fades during training; here with one
scale per group, and the start by error compensation takes the place of the residual). Reads and
writes no file.
"""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from agent_forge.core.errors import ConfigError
from agent_forge.models.ternary.codes import group_blocks, multiply_out

FOUR = 4
# Latents for given codes keep this distance from each other, as a share of their size.
_MARGIN = 0.02
_BITS, _VALUES, _BYTES = 5, 8, 5  # eight values of five bits fill five bytes


def nonzero_mask(size: Tensor) -> Tensor:
    """Return which weights stay: all but the first of least size in each four of a row.

    size: (rows, columns); the result is bool of the same shape.
    """
    # What fills up the last four of a row is less than any weight, and so takes the place of zero.
    fours = functional.pad(size, (0, -size.shape[1] % FOUR), value=-torch.inf)
    fours = fours.unflatten(1, (-1, FOUR))
    stays = torch.ones_like(fours, dtype=torch.bool)
    stays.scatter_(-1, fours.argmin(-1, keepdim=True), False)
    return stays.flatten(1)[:, : size.shape[1]].contiguous()


def signs(weight: Tensor) -> Tensor:
    """Return -1 or 1 for each weight, in its dtype; a zero counts by the sign that it carries."""
    return torch.ones_like(weight).copysign_(weight)


def three_of_four_codes(
    weight: Tensor, group_size: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes (out, in) int8 and scales (out, groups) bfloat16 of latents.

    A single scale per tensor is repeated in every row.

    scales: (out, groups), or (1, 1) for one per tensor; None takes the mean size of the weights of
    each group that stay.
    """
    size = weight.abs()
    stays = nonzero_mask(size)
    if scales is None:
        scales = _mean_sizes(size, stays, group_size)
    return (
        (signs(weight) * stays).to(torch.int8),
        scales.to(torch.bfloat16).expand(len(weight), -1).contiguous(),
    )


def _mean_sizes(size: Tensor, stays: Tensor, group_size: int) -> Tensor:
    """Return the mean size of the weights that stay, (out, groups) or (1, 1) float32."""
    blocks = zip(
        group_blocks(size * stays, group_size),
        group_blocks(stays, group_size),
        strict=True,
    )
    means = [part.sum(-1, dtype=torch.float32) / one.sum(-1) for part, one in blocks]
    return torch.cat(means, dim=1)


def project_three_of_four(codes: Tensor, scales: Tensor, group_size: int, target: Tensor) -> Tensor:
    """Return float32 latents (out, in) near to `target` that have these codes.

    For layers whose scales are parameters.

    scales: (out, groups), or (1, 1) for one per tensor.
    """
    scale, stays = multiply_out(torch.ones_like(codes), scales, group_size), codes != 0
    size = target.float().abs()
    nonzero_size = size.masked_fill(signs(target) != codes, 0.0).maximum(scale * _MARGIN)
    fours = functional.pad(
        nonzero_size.masked_fill(~stays, torch.inf), (0, -codes.shape[1] % FOUR), value=torch.inf
    ).unflatten(1, (-1, FOUR))
    smallest = fours.amin(-1, keepdim=True).expand_as(fours).flatten(1)[:, : codes.shape[1]]
    of_zero = torch.copysign(size.minimum(smallest * (1 - _MARGIN)), target)
    return torch.where(stays, codes * nonzero_size, of_zero)


def latents_for_three_of_four(
    codes: Tensor, scales: Tensor, group_size: int, near: Tensor | None = None
) -> Tensor:
    """Return float32 latents (out, in) near to `near` whose codes and scales are exactly these."""
    near = multiply_out(codes, scales, group_size) if near is None else near
    latents = project_three_of_four(codes, scales, group_size, near)
    means = _mean_sizes(latents.abs(), codes != 0, group_size)
    goal = scales[: len(means)].float()
    factor = torch.where(means > 0, goal / means.clamp_min(1e-30), 0.0)
    # The order of sizes within a group does not change when all are multiplied by one factor.
    wide = multiply_out(torch.ones_like(codes), factor.expand(len(codes), -1), group_size)
    return latents * wide


def _every_four() -> Tensor:
    """Return the codes of each of the 32 values: (32, 4) int8."""
    rows = []
    for place, others in product(range(FOUR), product((-1, 1), repeat=FOUR - 1)):
        rows.append([*others[:place], 0, *others[place:]])
    return torch.tensor(rows, dtype=torch.int8)


def packed_length(rows: int, columns: int) -> int:
    """Return the bytes that a matrix takes."""
    return -(-rows * -(-columns // FOUR) // _VALUES) * _BYTES


def pack(codes: Tensor) -> Tensor:
    """Return codes (rows, columns) as (bytes,) uint8.

    Raises ConfigError where a four has another number of zeros than one.
    """
    missing = -codes.shape[1] % FOUR
    filler = torch.tensor([0, 1, 1], dtype=codes.dtype, device=codes.device)[:missing]
    fours = torch.cat([codes, filler.expand(len(codes), -1)], 1).reshape(-1, FOUR).long()
    powers = torch.tensor([1, 3, 9, 27], device=codes.device)
    # The number of a four in the system of base three -> its value, or -1 where it is none of ours.
    value_of = torch.full((81,), -1, device=codes.device)
    every = _every_four().to(codes.device)
    value_of[((every.long() + 1) * powers).sum(1)] = torch.arange(len(every), device=codes.device)
    values = value_of[((fours + 1) * powers).sum(1)]
    if values.numel() and int(values.min()) < 0:
        raise ConfigError(
            "each four codes of a row must hold exactly one 0 to be packed as three_of_four; "
            "pack these as five_trits"
        )
    values = functional.pad(values, (0, -len(values) % _VALUES)).view(-1, _VALUES)
    words = (values << torch.arange(0, _BITS * _VALUES, _BITS, device=codes.device)).sum(1)
    shifts = torch.arange(0, 8 * _BYTES, 8, device=codes.device)
    return (words[:, None] >> shifts & 255).to(torch.uint8).flatten()


def unpack(packed: Tensor, rows: int, columns: int) -> Tensor:
    """Return the codes of `pack` as (rows, columns) int8; `packed` has the right length."""
    shifts = torch.arange(0, 8 * _BYTES, 8, device=packed.device)
    words = (packed.view(-1, _BYTES).long() << shifts).sum(1)
    places = torch.arange(0, _BITS * _VALUES, _BITS, device=packed.device)
    values = (words[:, None] >> places & 31).flatten()[: rows * -(-columns // FOUR)]
    return _every_four().to(packed.device)[values].view(rows, -1)[:, :columns].contiguous()
