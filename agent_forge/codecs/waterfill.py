"""Water-filling: each weight is rounded with a step such that all cost the same loss, then coded.

For a loss ½ Σ_o r_o ΔW_o H ΔW_oᵀ and errors fed back column by column, what is left is ½ Σ r_o
(e_oi / U_ii)², with U the upper Cholesky factor of H⁻¹ and e the rounding errors. At a given rate
that sum is least when its terms are equal: the step of weight (o, i) goes as U_ii / √r_o. Codes of
a row and a column then differ in size, and rows and columns of like size share a table in the
entropy coder. Reads a matrix, H and r; without them all steps are equal.
Sources: WaterSIC, arXiv:2603.04956 (one step per column). Deviation: rows have steps too, from the
Fisher information of the outputs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.codecs import entropy, host
from agent_forge.codecs.compensate import inverse_factor
from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError

weighs_rows = True
LARGEST_CODE = 127
# Column steps are stored as one byte each, in so many levels per octave.
COLUMN_LEVELS_PER_OCTAVE = 8
WIDENING_LEVELS = 4  # Wider column steps that are tried lie half an octave apart.
LAZY_COLUMNS = 64  # columns coded before the rest of the matrix is updated
# A Gaussian of σ steps is coded best, at the price of its own rate, with the threshold of code 1
# this much over ½: times 1/σ². (The price is ln 2/6 of a step² per bit; code 1 costs 1/(2 σ² ln 2)
# bits more than code 0.)
DEAD_ZONE, WIDEST_DEAD_ZONE = 1 / 24, 0.2
RESCALED_BELOW = 2.0  # RMS of the codes; finer codes have nothing to gain from a new scale


@dataclass(slots=True, kw_only=True)
class Settings:
    """loss: what each weight may cost, in the unit of the Hessian.

    0: `step` is used, in RMS of the matrix.
    """

    loss: float = 0.0
    step: float = 0.25

    def __post_init__(self) -> None:
        if self.loss < 0 or self.step <= 0:
            raise ConfigError(
                f"codec waterfill: loss must not be negative and step above 0, got {self.loss} and "
                f"{self.step}"
            )


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None, importance: Tensor | None = None
) -> tuple[Parts, dict[str, Any]]:
    """Return the coded integers, their steps per row and per column, and their entropy classes.

    Row steps are float16, in units of 2^u.

    importance: r, (rows,), with mean 1; all ones when it is not given.
    """
    weight = weight.float()
    upper = (
        torch.eye(weight.shape[1], device=weight.device)
        if hessian is None
        else inverse_factor(hessian)
    )
    diagonal = upper.diagonal()
    typical = float(diagonal.log().mean().exp())
    levels = (COLUMN_LEVELS_PER_OCTAVE * (diagonal / typical).log2()).round().clamp(-128, 127) + 128
    # A rounding error is uniform: its square is step²/12 on average, and the loss takes half of
    # that.
    by_loss = settings.loss > 0 and hessian is not None
    base = (
        (24 * settings.loss) ** 0.5 * typical
        if by_loss
        else settings.step * float(weight.square().mean().sqrt())
    )
    rows = weight.new_full((len(weight),), max(base, 1e-30))
    if importance is not None:
        rows = rows / importance.clamp_min(1e-12).sqrt()
    levels = _widened(weight, rows, levels)
    columns = column_steps(levels)
    rows = torch.maximum(rows, (weight.abs() / columns).amax(1) / LARGEST_CODE)
    unit = int(rows.log2().median().floor())
    rows = _stored(rows, unit)
    codes = _coded(weight, upper, rows, columns)
    if hessian is not None and float(codes.float().square().mean()) < RESCALED_BELOW**2:
        rows = _stored(_rescaled(weight, codes, rows, columns, hessian), unit)
    stored = codes.cpu().numpy()
    by_row, by_column = entropy.size_classes(stored)
    coded = host.call(entropy.compress_blocks, stored, by_row, by_column, entries=stored.size)
    parts: Parts = {
        "s": (rows / 2.0**unit).half().cpu().numpy(),
        "c": levels.to(torch.uint8).cpu().numpy(),
        "a": by_row,
        "b": by_column,
        "q": np.frombuffer(coded, np.uint8),
    }
    return parts, {"u": unit}


def _widened(weight: Tensor, rows: Tensor, levels: Tensor) -> Tensor:
    """Return the column levels, raised where codes would overflow and raising rows would cost more.

    All weights cost the same loss, so a step wider by a factor f adds f² - 1 times it for every
    weight of its row or column; but a row cannot lose more than all its weights are worth.
    """
    over = weight.abs() / (rows[:, None] * column_steps(levels) * LARGEST_CODE)
    worth = 12 * (over * LARGEST_CODE).square().mean(1, keepdim=True)
    columns = (over.amax(0) > 1).nonzero().flatten()
    over, best = over[:, columns], over.new_full((len(columns),), float("inf"))
    raised = torch.zeros_like(best)
    widest = COLUMN_LEVELS_PER_OCTAVE * float(over.max().log2()) if len(columns) else 0.0
    for level in range(0, int(widest) + WIDENING_LEVELS + 1, WIDENING_LEVELS):
        wider = 2.0 ** (level / COLUMN_LEVELS_PER_OCTAVE)
        # What the column does not take has to be taken by the rows whose codes still overflow.
        left = ((over / wider).square() - 1).clamp_min(0).minimum(worth)
        cost = len(weight) * (wider**2 - 1) + weight.shape[1] * left.sum(0)
        raised, best = torch.where(cost < best, level, raised), torch.minimum(cost, best)
    levels = levels.clone()
    levels[columns] += raised
    return levels.clamp_max(255)


def column_steps(levels: Tensor) -> Tensor:
    """Return the step of each column, relative to a row's, from its stored level: float32."""
    return torch.exp2((levels.float() - 128) / COLUMN_LEVELS_PER_OCTAVE)


def _stored(rows: Tensor, unit: int) -> Tensor:
    """Round row steps to what the file keeps: float16 in units of 2^unit."""
    return (rows / 2.0**unit).clamp(6.2e-5, 6.5e4).half().float() * 2.0**unit


def _coded(weight: Tensor, upper: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return codes (rows, columns) int8, rounded column by column with each error fed back into the
    rest.
    """
    # Columns are contiguous in this copy, because all steps below go along a column. `contiguous`
    # would not copy a matrix of one row, and the errors fed back would change the caller's weights.
    work = weight.T.clone(memory_format=torch.contiguous_format)
    codes = torch.empty_like(work, dtype=torch.int8)
    size = weight.square().mean().clamp_min(1e-30)
    # Variance of a weight in steps, as row times column: (σ/step)² = by_row · by_column.
    by_row = weight.square().mean(1) / rows.square() / size
    by_column = weight.square().mean(0) / columns.square()
    inverse, dead_rows = 1 / rows, DEAD_ZONE / by_row.clamp_min(1e-12)
    dead = (1 / by_column.clamp_min(1e-12)).tolist()
    steps, scales = columns.tolist(), upper.diagonal().tolist()
    for start in range(0, len(work), LAZY_COLUMNS):
        end = min(start + LAZY_COLUMNS, len(work))
        errors = work.new_empty(end - start, work.shape[1])
        for j in range(start, end):
            # The reciprocals of all rows are computed once; the step of a column is one number.
            unit = work[j] * inverse / steps[j]
            threshold = 0.5 - (dead_rows * dead[j]).clamp_(max=WIDEST_DEAD_ZONE)
            code = unit.abs().add_(threshold).floor_().clamp_(max=LARGEST_CODE).copysign_(unit)
            codes[j] = code
            error = errors[j - start]
            torch.sub(work[j], code.mul_(rows).mul_(steps[j]), out=error).div_(scales[j])
            if j + 1 < end:
                work[j + 1 : end].addr_(upper[j, j + 1 : end], error, alpha=-1)
        # The columns of later runs are updated once per run, by one large product.
        if end < len(work):
            work[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return codes.T.contiguous()


def _rescaled(
    weight: Tensor, codes: Tensor, rows: Tensor, columns: Tensor, hessian: Tensor
) -> Tensor:
    """Return the row steps of least loss for these codes.

    Each is the slope of a line through the origin, fitted in the Hessian's metric.
    """
    values = codes.float() * columns * rows[:, None]
    pushed = values @ hessian
    ratio = (weight * pushed).sum(1) / (values * pushed).sum(1).clamp_min(1e-30)
    return rows * torch.where((ratio > 0.5) & (ratio < 2), ratio, torch.ones_like(ratio))


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"q": (rows, columns) int8, "s": (rows,) and "c": (columns,) float32}."""
    data, entries = parts["q"].tobytes(), shape[0] * shape[1]
    codes = host.call(entropy.expand_blocks, data, parts["a"], parts["b"], entries=entries)
    return {
        "q": torch.from_numpy(codes),
        "s": torch.from_numpy(parts["s"].astype(np.float32)) * 2.0 ** meta["u"],
        "c": column_steps(torch.from_numpy(parts["c"].copy())),
    }


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    del meta, shape
    codes, scales = (tensors[key] if rows is None else tensors[key][rows] for key in ("q", "s"))
    return codes.float().mul_(tensors["c"].float()).mul_(scales[:, None].float())
