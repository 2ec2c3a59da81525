"""Error compensation: quantise columns left to right and let the columns not yet coded absorb each error.

For a layer y = Wx with H = E[x xᵀ], the loss tr(ΔW H ΔWᵀ) left by coding a block B of columns with error E is least
when the remaining columns R move by -E (H⁻¹_BB)⁻¹ H⁻¹_BR. With the upper Cholesky factor U of H⁻¹: -E U_BB⁻¹ U_BR.
Source: Frantar et al. 2022, arXiv:2210.17323 (single columns); van Baalen et al. 2024, arXiv:2402.15319 (vectors).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agent_forge.core.errors import PhaseError

Quantise = Callable[[Tensor, int], Tensor]  # (block (rows, step), first column) -> coded block, same shape

# Of each column's own diagonal. GPTQ adds a share of the mean: where a few inputs are a thousand times the others, as after
# an attention sink, that drowns the rest.
DAMPING = 0.01
SILENT = 1e-6  # of the mean diagonal, for inputs that calibration never saw


def compensate(weight: Tensor, hessian: Tensor, quantise: Quantise, *, step: int = 1, lazy: int = 128) -> Tensor:
    """Code `weight` (rows, columns) block by block and return the coded weights, same shape, float32.

    quantise: sees `step` columns after compensation, in order; it may keep state (codes, group scales).
    lazy: columns coded before the rest of the matrix is updated; a multiple of `step`.
    Raises PhaseError when the Hessian has no inverse even after damping.
    """
    assert lazy % step == 0
    work = weight.detach().float().clone()
    coded = torch.empty_like(work)
    upper = inverse_factor(hessian)
    columns = work.shape[1]
    for start in range(0, columns, lazy):
        end = min(start + lazy, columns)
        scaled_errors = work.new_empty(work.shape[0], end - start)
        for first in range(start, end, step):
            last = min(first + step, end)
            target = work[:, first:last].clone()
            coded[:, first:last] = quantise(target, first)
            error = target - coded[:, first:last]
            block = upper[first:last, first:last]
            if last - first == 1:
                scaled = error / block
            else:
                scaled = torch.linalg.solve_triangular(block, error, upper=True, left=False)
            work[:, last:end] -= scaled @ upper[first:last, last:end]
            scaled_errors[:, first - start : last - start] = scaled
        work[:, end:] -= scaled_errors @ upper[start:end, end:]
    return coded


def inverse_factor(hessian: Tensor) -> Tensor:
    """Return U, upper triangular, with UᵀU = (H + damping)⁻¹: (columns, columns) float32.

    The last answer is kept: a matrix is coded by many candidates in a row.
    """
    global _last_factor
    known = _last_factor
    if known is None or known[0] is not hessian or known[1] != hessian._version:
        known = _last_factor = (hessian, hessian._version, _inverse_factor(hessian))
    return known[2]


_last_factor: tuple[Tensor, int, Tensor] | None = None


def damped(hessian: Tensor) -> Tensor:
    """Return the Hessian with its diagonal raised so that it has an inverse: float64."""
    raised = hessian.detach().double().clone()
    diagonal = raised.diagonal()
    diagonal += DAMPING * diagonal + SILENT * diagonal.mean().clamp_min(1e-24)
    return raised


def _inverse_factor(hessian: Tensor) -> Tensor:
    lower, failed = torch.linalg.cholesky_ex(damped(hessian))
    if int(failed):
        raise PhaseError(
            "a layer's input Hessian has no Cholesky factor; are there NaNs in the calibration activations?"
        )
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()


def pad_columns(weight: Tensor, hessian: Tensor | None, multiple: int) -> tuple[Tensor, Tensor | None]:
    """Append zero columns up to a multiple of `multiple`; they share nothing with the others in the Hessian."""
    missing = -weight.shape[1] % multiple
    if not missing:
        return weight, hessian
    padded = torch.nn.functional.pad(weight, (0, missing))
    if hessian is None:
        return padded, None
    wide = torch.nn.functional.pad(hessian, (0, missing, 0, missing))
    wide.diagonal()[-missing:] = hessian.diagonal().mean()
    return padded, wide
