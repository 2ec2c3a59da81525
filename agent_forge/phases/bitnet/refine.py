"""Choose ternary codes anew, column by column, given all other columns: coordinate descent on a
layer's output error.

Rounding in order lets later columns make up for the error of earlier ones, never the other way
round. Here each column in turn takes the codes that are best given all others (QuantEase,
arXiv:2309.01885), then the scales are fitted anew. Departure: a row keeps a sweep only if its error
fell, so that the error tr(dW H dWᵀ) of no row ever rises. Reads a goal, H and codes with scales;
returns better ones.

Shapes: R rows (out), C columns (in), G groups.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agent_forge.models.ternary import TENSOR, multiply_out

# Where groups do not set it, so many columns are swept before the slopes of the rest are updated.
COLUMNS = 128

Fit = Callable[[Tensor, Tensor], Tensor]


def refined(
    goal_RC: Tensor,
    hessian_CC: Tensor,
    start: tuple[Tensor, Tensor, Tensor],
    group_size: int,
    fit: Fit,
    sweeps: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (codes (R, C) int8, scales (R, G) bfloat16, wishes (R, C)) after `sweeps` passes
    over all columns.

    start: the same three before the first sweep. A wish is the weight that would have been best for
    its column, and rounds to its code. hessian_CC: with a positive diagonal. fit: returns the best
    scales for codes (R, C), or the scales (R, G) it was called with where the best are not usable.
    """
    codes, scales, wishes = start
    slope, error = _slope_and_error(goal_RC, hessian_CC, codes, scales, group_size)
    for _ in range(sweeps):
        new_codes, new_wishes = _sweep(hessian_CC, slope, codes, scales, group_size)
        new_scales = fit(new_codes, scales)
        new_slope, new_error = _slope_and_error(
            goal_RC, hessian_CC, new_codes, new_scales, group_size
        )
        # One scale per tensor joins the rows, so only the sum of their errors can decide.
        better = (
            new_error < error
            if group_size != TENSOR
            else (new_error.sum() < error.sum()).expand_as(error)
        )
        codes, scales, wishes, slope = (
            torch.where(better[:, None], new, old)
            for new, old in (
                (new_codes, codes),
                (new_scales, scales),
                (new_wishes, wishes),
                (new_slope, slope),
            )
        )
        error = torch.where(better, new_error, error)
    return codes, scales, wishes


def _slope_and_error(
    goal: Tensor, hessian: Tensor, codes: Tensor, scales: Tensor, group_size: int
) -> tuple[Tensor, Tensor]:
    """Return the residual times H, (R, C), and the error of each row, (R,)."""
    residual = goal - multiply_out(codes, scales, group_size)
    slope = residual @ hessian
    return slope, (slope * residual).sum(1)


def _sweep(
    hessian: Tensor, slope: Tensor, codes: Tensor, scales: Tensor, group_size: int
) -> tuple[Tensor, Tensor]:
    """Return new codes and wishes of one pass over the columns.

    Works on transposed tensors, where a column is contiguous.
    """
    # The slope of a column is its residual times H: what moving its codes would gain. It is copied
    # also where there is one row, which `contiguous` would not copy.
    slope_CR = slope.T.clone(memory_format=torch.contiguous_format)
    codes_CR = codes.T.to(slope.dtype)
    wide_CR = multiply_out(torch.ones_like(codes), scales, group_size).T.contiguous()
    wishes_CR = torch.empty_like(slope_CR)
    diagonal, size = hessian.diagonal(), group_size if group_size > 0 else COLUMNS
    for start in range(0, len(codes_CR), size):
        end = min(start + size, len(codes_CR))
        own, near = slope_CR[start:end].clone(), hessian[start:end, start:end]
        moves = torch.empty_like(own)
        for j in range(end - start):
            scale, code = wide_CR[start + j], codes_CR[start + j]
            # The weight at which the row's error is least when all other columns stay.
            wish = torch.addcdiv(code * scale, own[j], diagonal[start + j].expand_as(scale))
            chosen = wish.sign() * (wish.abs() > scale / 2) * (scale > 0)
            moves[j] = (chosen - code) * scale
            # Only the slopes of this block are updated now; one product updates all of them later.
            own[j + 1 :].addr_(near[j, j + 1 :], moves[j], alpha=-1)
            codes_CR[start + j], wishes_CR[start + j] = chosen, wish
        slope_CR.addmm_(hessian[:, start:end], moves, alpha=-1)
    return codes_CR.T.to(torch.int8).contiguous(), wishes_CR.T.contiguous()
