"""Error compensation: columns are coded left to right, and those to come absorb each error.

For a layer y = Wx with H = E[x xᵀ], the loss tr(ΔW H ΔWᵀ) left by coding a block B of columns with
error E is least when the remaining columns R move by -E (H⁻¹_BB)⁻¹ H⁻¹_BR. With the upper Cholesky
factor U of H⁻¹: -E U_BB⁻¹ U_BR.
Source: Frantar et al. 2022, arXiv:2210.17323 (single columns); van Baalen et al. 2024,
arXiv:2402.15319 (vectors).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agent_forge.core.errors import PhaseError

# Takes a block (rows, step) after compensation and the number of its first column; returns the
# coded block.
Quantise = Callable[[Tensor, int], Tensor]
# Takes the columns (rows, lazy) that come next, as compensated so far, and the number of the first.
Begin = Callable[[Tensor, int], None]

# The share of each column's own diagonal that is added to it. GPTQ adds a share of the mean
# diagonal: where a few inputs are a thousand times the others, as after an attention sink, that
# drowns the rest.
DAMPING = 0.01
SILENT = 1e-6  # The share of the mean diagonal that is added for inputs that calibration never saw.


def compensate(
    weight: Tensor, hessian: Tensor, quantise: Quantise, *, step: int = 1, lazy: int = 128
) -> Tensor:
    """Code `weight` (rows, columns) for inputs with `hessian`, damped by `damped`; see
    `code_in_order`.

    Raises PhaseError when the Hessian has no inverse even after damping.
    """
    return code_in_order(weight, inverse_factor(hessian), quantise, step=step, lazy=lazy)


def code_in_order(
    weight: Tensor,
    upper: Tensor,
    quantise: Quantise,
    *,
    step: int = 1,
    lazy: int = 128,
    begin: Begin | None = None,
    fused: bool = False,
) -> Tensor:
    """Code `weight` (rows, columns) block by block and return the coded weights, same shape,
    float32.

    upper: U with UᵀU = H⁻¹ of a Hessian that was damped. quantise: is called with `step` columns
    after compensation, in order; it may keep state (codes, group scales). lazy: columns coded
    before the rest of the matrix is updated; a multiple of `step`. begin: called before each of
    these, so that a group's scale can be chosen from its compensated weights. fused: updates round
    once instead of twice, for single columns. Stored codes depend on that last bit of rounding, so
    each caller keeps the way that it has.
    """
    assert lazy % step == 0
    assert step == 1 or not fused
    work = weight.detach().float().clone()
    coded = torch.empty_like(work)
    columns = work.shape[1]
    for start in range(0, columns, lazy):
        end = min(start + lazy, columns)
        if begin is not None:
            begin(work[:, start:end], start)
        scaled_errors = work.new_empty(work.shape[0], end - start)
        for first in range(start, end, step):
            last = min(first + step, end)
            target = work[:, first:last].clone()
            coded[:, first:last] = quantise(target, first)
            scaled = _over(target - coded[:, first:last], upper[first:last, first:last])
            # Columns of this run are compensated at once, the rest of the matrix after the run, by
            # one large product instead of many small ones.
            if fused:
                work[:, last:end].addr_(scaled[:, 0], upper[first, last:end], alpha=-1)
            else:
                work[:, last:end] -= scaled @ upper[first:last, last:end]
            scaled_errors[:, first - start : last - start] = scaled
        if fused:
            work[:, end:].addmm_(scaled_errors, upper[start:end, end:], alpha=-1)
        else:
            work[:, end:] -= scaled_errors @ upper[start:end, end:]
    return coded


def _over(error: Tensor, block: Tensor) -> Tensor:
    """Return error (rows, n) times the inverse of an upper triangular block (n, n)."""
    if block.shape[0] == 1:
        return error / block
    return torch.linalg.solve_triangular(block, error, upper=True, left=False)


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
            "a layer's input Hessian has no Cholesky factor; are there NaNs in the calibration "
            "activations?"
        )
    return upper_from(lower)


def upper_from(lower: Tensor) -> Tensor:
    """Return U of H⁻¹ = UᵀU, upper and float32, from L of H = LLᵀ, lower and float64."""
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()


def pad_columns(
    weight: Tensor, hessian: Tensor | None, multiple: int
) -> tuple[Tensor, Tensor | None]:
    """Append columns of zeros up to a multiple of `multiple`, uncorrelated with the others in the
    Hessian.
    """
    missing = -weight.shape[1] % multiple
    if not missing:
        return weight, hessian
    padded = torch.nn.functional.pad(weight, (0, missing))
    if hessian is None:
        return padded, None
    wide = torch.nn.functional.pad(hessian, (0, missing, 0, missing))
    # A positive diagonal, so that the padded Hessian has an inverse.
    wide.diagonal()[-missing:] = hessian.diagonal().mean()
    return padded, wide
