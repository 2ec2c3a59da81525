"""The arithmetic of ternary weights: codes and scales of latents, latents of codes, gradients.

The straight-through estimator computes with one tensor and sends the gradient to another
(arXiv:1308.3432). Groups, scales and shapes follow BitNet b1.58 (arXiv:2402.17764), with one scale
per group. Reads and writes no file.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from agent_forge.config.ternary import TENSOR

# Latents for given codes keep this distance from the rounding border, in units of the scale.
_MARGIN = 0.02


def group_blocks(weight: Tensor, group_size: int) -> Iterator[Tensor]:
    """Yield (out, groups, size) views of weight (out, in): whole groups, then a shorter last one.

    With one scale per tensor there is a single block (1, 1, out * in).
    """
    if group_size == TENSOR:
        yield weight.reshape(1, 1, -1)
        return
    group_size = group_size or weight.shape[1]
    whole = weight.shape[1] // group_size * group_size
    if whole:
        yield weight[:, :whole].view(weight.shape[0], -1, group_size)
    if whole < weight.shape[1]:
        yield weight[:, whole:].unsqueeze(1)


def _scale_blocks(
    scales: Tensor | None, weight: Tensor, group_size: int
) -> Iterator[Tensor | None]:
    """Yield the scales for each of `group_blocks`, (out, groups, 1) float32, or None for each."""
    if scales is None or group_size == TENSOR:
        yield from [None if scales is None else scales[:1, :1].float().unsqueeze(-1)] * 2
        return
    whole = weight.shape[1] // (group_size or weight.shape[1])
    for part in (scales[:, :whole], scales[:, whole:]):
        if part.numel():
            yield part.float().unsqueeze(-1)


def ternary_weight(
    weight: Tensor, group_size: int, dtype: torch.dtype | None = None, scales: Tensor | None = None
) -> Tensor:
    """Return the ternary weight of latents (out, in): sign * scale, or 0 where |w| <= scale / 2.

    scales: (out, groups) bfloat16, or (1, 1) for one per tensor; None takes mean|W| of the group,
    rounded to bfloat16.
    dtype: the dtype of the result; None takes the latents'.
    """
    parts = []
    for block, own in zip(
        group_blocks(weight, group_size), _scale_blocks(scales, weight, group_size), strict=False
    ):
        # Training does this at every step, so all passes after the first are in place.
        result = block.abs()
        scale = result.mean(-1, keepdim=True, dtype=torch.float32) if own is None else own
        result.gt_(scale * 0.5).mul_(scale.to(torch.bfloat16).to(weight.dtype)).copysign_(block)
        parts.append(result.view(len(weight), -1).to(dtype or weight.dtype))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def ternary_codes(
    weight: Tensor, group_size: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return codes (out, in) int8 and scales (out, groups) bfloat16 of latents.

    Their product is `ternary_weight`. A single scale per tensor is repeated in every row.

    scales: as in `ternary_weight`.
    """
    codes, all_scales = [], []
    for block, own in zip(
        group_blocks(weight, group_size), _scale_blocks(scales, weight, group_size), strict=False
    ):
        magnitude = block.abs()
        scale = magnitude.mean(-1, keepdim=True, dtype=torch.float32) if own is None else own
        codes.append(
            (block.sign() * (magnitude > scale * 0.5)).to(torch.int8).view(len(weight), -1)
        )
        all_scales.append(scale.squeeze(-1).to(torch.bfloat16).expand(len(weight), -1).contiguous())
    return torch.cat(codes, dim=1), torch.cat(all_scales, dim=1)


def project_latents(codes: Tensor, scales: Tensor, group_size: int, target: Tensor) -> Tensor:
    """Return the float32 latents (out, in) nearest to `target` that round to these codes.

    For layers whose scales are parameters.

    scales: (out, groups), or (1, 1) for one per tensor.
    """
    scale = multiply_out(torch.ones_like(codes), scales, group_size)
    border, margin = scale * 0.5, scale * _MARGIN
    size, nonzero = target.float().abs(), codes != 0
    beyond = codes * size.masked_fill(target.sign() != codes, 0.0).maximum(border + margin)
    inside = torch.copysign(size.minimum(border - margin), target)
    return torch.where(nonzero, beyond, inside)


def latents_for(
    codes: Tensor, scales: Tensor, group_size: int, near: Tensor | None = None
) -> Tensor:
    """Return float32 latents (out, in) near to `near` whose codes and scales are exactly these.

    Within a group the values keep their order: those beyond the border s / 2 are stretched until
    mean|W| is s.
    """
    near = multiply_out(codes, scales, group_size) if near is None else near.float()
    parts = []
    scales = scales[:1] if group_size == TENSOR else scales
    for i, (block, code) in enumerate(
        zip(group_blocks(near, group_size), group_blocks(codes, group_size), strict=True)
    ):
        # The second block is the shorter last group, after all whole ones.
        first = near.shape[1] // group_size if i else 0
        scale = scales[:, first : first + block.shape[1]].float().unsqueeze(-1)
        border, margin = scale * 0.5, scale * _MARGIN
        nonzero = code != 0
        zeros = torch.minimum(block.abs(), border - margin) * ~nonzero
        beyond = (block.abs() - border).clamp_min(0).maximum(margin) * nonzero
        target_sum = (
            scale * block.shape[-1]
            - border * nonzero.sum(-1, keepdim=True)
            - zeros.sum(-1, keepdim=True)
        )
        stretched = beyond * (target_sum / beyond.sum(-1, keepdim=True).clamp_min(1e-30))
        # A group in which all codes are 0 can only have the scale 0.
        latents = torch.where(nonzero, code * (border + stretched), torch.copysign(zeros, block))
        parts.append(torch.where(nonzero.any(-1, keepdim=True), latents, 0.0).view(len(near), -1))
    return torch.cat(parts, dim=1)


def quantise_activations(x: Tensor, bits: int) -> Tensor:
    """Return x (..., in) rounded to multiples of absmax / (2^(bits-1) - 1) of its token."""
    top = 2 ** (bits - 1) - 1
    step = x.abs().amax(-1, keepdim=True).clamp_min(1e-5) / top
    return (x / step).round_().mul_(step)


def multiply_out(codes: Tensor, scales: Tensor, group_size: int) -> Tensor:
    """Return codes (out, in) times the scales of their groups, as float32.

    scales: (out, groups), or (1, 1) for one per tensor.
    group_size: 0 means one scale per row, -1 one per tensor.
    """
    columns = group_size if group_size > 0 else codes.shape[1]
    wide = scales.float().repeat_interleave(columns, dim=1)[:, : codes.shape[1]]
    return codes.float() * wide


def straight_through(value: Tensor, replacement: Tensor) -> Tensor:
    """Return `replacement`; the gradient goes to `value` unchanged."""
    function = _Reverse if torch.compiler.is_compiling() else StraightThrough
    result: Tensor = function.apply(value, replacement)  # type: ignore[no-untyped-call]
    return result


class _Reverse(torch.autograd.Function):
    """StraightThrough without forward mode, which torch.compile cannot trace."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, replacement: Tensor) -> Tensor:  # noqa: ARG004
        return replacement.view_as(replacement)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: ARG004
        return gradient, None


class StraightThrough(torch.autograd.Function):
    """Return `replacement`; the gradient goes to `value` unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, replacement: Tensor) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return replacement.view_as(replacement)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]  # noqa: ARG004
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, value_tangent: Tensor, replacement_tangent: Any) -> Tensor:  # type: ignore[override]  # noqa: ARG004
        return value_tangent.view_as(value_tangent)
