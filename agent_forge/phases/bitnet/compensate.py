"""Error-compensated ternary rounding: round column by column and let later columns make up for the
error.

The error that counts is the error of a layer's outputs, tr(dW H dWᵀ) with H = XᵀX of its inputs.
GPTQ (arXiv:2210.17323) rounds the columns in order and moves the rest against each error along H⁻¹.
Reads a model whose ternary layers are still dense (lambda 0) and calibration windows; leaves
latents in the cells of the compensated codes, and scales. Departures: the scale of a group is
chosen when its turn comes, by what its rounding then costs; and when all codes are known, the
scales of each row are fitted anew by least squares in H, and the codes swept again for what all
others leave (refine.py).

Waves: the layers are compensated in the order they run, some at a time, so that later ones see
inputs with errors in them. Each still aims at its own dense outputs, so errors add up along the
blocks: where the model allows it, follow.py aims at the parent's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from agent_forge.anatomy.moments import SharedMoments
from agent_forge.anatomy.watch import After, watching
from agent_forge.codecs.compensate import code_in_order, upper_from
from agent_forge.models.ternary import (
    ROW,
    TENSOR,
    TernaryLinear,
    multiply_out,
    project_latents,
    quantise_activations,
    ternary_codes,
    ternary_layers,
)
from agent_forge.phases.bitnet.refine import refined

# The multiples of mean|W| that are tried as the scale of a group; 1.5 is best for a Gaussian.
SCALES = (
    1.0,
    1.15,
    1.3,
    1.45,
    1.6,
    1.75,
    1.9,
)
# Where groups do not set it, so many columns are rounded before the rest of the matrix is updated.
COLUMNS = 128


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a layer is rounded.

    damping: what is added to the Hessian's diagonal, as a share of its geometric mean. A few
    columns can carry most of the power (in one down_proj of SmolLM2 all of it), and a share of the
    plain mean would be more than most columns have. sweeps: how many passes over all columns follow
    the rounding in order.
    """

    damping: float
    sweeps: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRun:
    """The text that layers are compensated on, and how it is run.

    windows: batches of ids (B, T) int64, all run at their full length. dtype: of the autocast in
    forward passes. progress(done, total) is called after each layer.
    """

    windows: Sequence[Tensor]
    dtype: torch.dtype = torch.float32
    progress: Callable[[int, int], None] = lambda _done, _total: None

    def autocast(self) -> torch.autocast:
        """Return the arithmetic of forward passes."""
        kind = self.windows[0].device.type
        return torch.autocast(kind, self.dtype, enabled=self.dtype != torch.float32)


@torch.no_grad()
def compensate_in_waves(
    model: nn.Module, calibration: CalibrationRun, waves: int, rounding: Rounding
) -> list[str]:
    """Leave the model ternary, with new latents and scales of their own; return the names of the
    layers that have them.

    Layers that calibration never runs keep their latents and are not named.
    """
    windows = calibration.windows
    layers = ternary_layers(model)
    for layer in layers.values():
        layer.blend = 0.0
    with calibration.autocast():
        order = _order_of_use(model, layers, windows[0])
    done, size = 0, -(-len(order) // waves)
    for start in range(0, len(order), size):
        names = order[start : start + size]
        with calibration.autocast():
            hessians = input_hessians(model, {name: layers[name] for name in names}, windows)
        for together in _same_inputs(names, layers, hessians):
            hessian = hessians[together[0]]
            rows = [len(layers[name].weight) for name in together]
            stacked = torch.cat([layers[name].weight for name in together])
            latents, scales = compensate(stacked, hessian, layers[together[0]].grouping, rounding)
            scales = scales.expand(len(stacked), -1)
            for name, part, own in zip(
                together, latents.split(rows), scales.split(rows), strict=True
            ):
                del hessians[name]
                layers[name].weight.copy_(part)
                layers[name].free_scales(own)
                layers[name].blend = 1.0
                done += 1
                calibration.progress(done, len(order))
    for layer in layers.values():
        layer.blend = 1.0
    return order


def _same_inputs(
    names: Sequence[str], layers: dict[str, TernaryLinear], hessians: dict[str, Tensor]
) -> list[list[str]]:
    """Return the names in groups of neighbours that have the same inputs.

    Rows do not depend on each other, so those layers are rounded at once. A layer with one scale
    per tensor stays alone.
    """
    groups: list[list[str]] = []
    for name in names:
        before = groups[-1][0] if groups else ""
        alike = before and layers[before].grouping == layers[name].grouping != TENSOR
        if alike and torch.equal(hessians[before], hessians[name]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def input_hessians(
    model: nn.Module, layers: dict[str, TernaryLinear], windows: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return XᵀX / n of each layer's inputs, rounded as the layer will round them: name -> (in, in)
    float32.
    """
    sums: dict[str, Tensor] = {}
    counts = dict.fromkeys(layers, 0)
    moments = SharedMoments()

    def noting(name: str, layer: TernaryLinear) -> After:
        bits = layer.activation_bits
        rounded = partial(quantise_activations, bits=bits) if bits else None

        def note(_: nn.Module, inputs: tuple[Any, ...], __: Any) -> None:
            product = moments.of(layer.normed(inputs[0]), rounded, kind=bits)
            sums[name] = sums[name].add_(product) if name in sums else product.clone()
            counts[name] += inputs[0].numel() // layer.in_features

        return note

    with watching(after=[(layer, noting(name, layer)) for name, layer in layers.items()]):
        for ids in windows:
            model(input_ids=ids, use_cache=False)
    return {name: total / counts[name] for name, total in sums.items()}


def compensate(
    weight: Tensor, hessian: Tensor, group_size: int, rounding: Rounding, pull: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return float32 latents (out, in) in the cells of compensated codes, and their scales (out,
    groups) or (1, 1).

    hessian: (in, in). pull: mean(d xᵀ) (out, in), where d is what the outputs lack; None where the
    weight's own outputs are the goal.
    """
    goal = weight.detach().float()
    hessian = hessian.float().clone()
    # Inputs that are always zero carry no error: their weights are rounded alone.
    silent = hessian.diagonal() <= 0
    hessian.diagonal()[silent] = 1.0
    hessian.diagonal().add_(rounding.damping * hessian.diagonal().log().mean().exp())
    # Float64: inputs of neighbouring columns are nearly dependent, and in float32 the factor of
    # such a matrix can fail.
    lower = torch.linalg.cholesky(hessian.double())
    if pull is not None:
        # The weight of least squares for the outputs that are aimed at: W + E[d xᵀ] H⁻¹.
        goal = goal + torch.cholesky_solve(pull.double().T, lower).T.float()
    codes, moved = _round_in_order(goal, upper_from(lower), group_size)

    def fit(chosen_codes: Tensor, otherwise: Tensor) -> Tensor:
        return _fit_scales(goal, chosen_codes, hessian, group_size, otherwise).expand(len(goal), -1)

    start = (codes, fit(codes, ternary_codes(goal, group_size)[1]), moved)
    codes, scales, moved = refined(goal, hessian, start, group_size, fit, rounding.sweeps)
    latents = project_latents(codes, scales, group_size, target=moved)
    return latents, scales[:1] if group_size == TENSOR else scales


def _round_in_order(original: Tensor, upper: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return codes (out, in) int8 and the weights as they were when their turn came.

    upper: (in, in), the upper Cholesky factor of the inverse Hessian.
    """
    codes, moved = torch.empty_like(original, dtype=torch.int8), torch.empty_like(original)
    # What an error in a column still costs after the later columns have made up for it.
    column_cost = upper.diagonal() ** -2
    scale = original.new_empty(0)
    if group_size == TENSOR:
        scale = best_scale(original.reshape(1, -1), column_cost.repeat(len(original))).expand(
            len(original)
        )
    elif group_size == ROW:
        scale = best_scale(original, column_cost)

    def begin(group: Tensor, first: int) -> None:
        nonlocal scale
        if group_size > 0:
            scale = best_scale(group, column_cost[first : first + group.shape[1]])

    def rounded(block: Tensor, first: int) -> Tensor:
        column = block[:, 0]
        code = column.sign() * (column.abs() > scale / 2)
        codes[:, first], moved[:, first] = code.to(torch.int8), column
        return (code * scale)[:, None]

    # Later columns are updated once per group; within it every column sees the errors so far.
    lazy = group_size if group_size > 0 else COLUMNS
    code_in_order(original, upper, rounded, lazy=lazy, begin=begin, fused=True)
    return codes, moved


def best_scale(block: Tensor, column_cost: Tensor) -> Tensor:
    """Return for each row of block (rows, columns) the multiple of mean|W| with the least rounding
    error.

    column_cost: (columns,), what a squared error costs. mean|W| itself is the first candidate, so
    this is never worse.
    """
    # The sign of a weight never changes in rounding, so sizes alone decide.
    size = block.abs()
    mean = size.mean(1)
    best = torch.full_like(mean, torch.inf)
    best_so_far = mean
    for multiple in SCALES:
        scale = mean * multiple
        error = (size - scale[:, None] * (size > scale[:, None] / 2)).square() @ column_cost
        best_so_far = torch.where(error < best, scale, best_so_far)
        best = torch.minimum(error, best)
    return best_so_far


def _fit_scales(
    original: Tensor, codes: Tensor, hessian: Tensor, group_size: int, otherwise: Tensor
) -> Tensor:
    """Return scales (out, groups) bfloat16 that minimise the output error of these codes, per row
    or for the whole tensor.

    A row whose best scales are not all positive takes the scales of `otherwise` (out, groups).
    """
    size = group_size if group_size > 0 else codes.shape[1]
    columns = [slice(start, start + size) for start in range(0, codes.shape[1], size)]
    # The error is quadratic in a row's scales s: sᵀ A s - 2 bᵀ s with A[g, h] = c_g H[g, h] c_hᵀ
    # and b[g] = c_g H[g, :] wᵀ, where c are the codes. It is least at s = A⁻¹ b.
    products = torch.empty(len(codes), len(columns), len(columns), device=codes.device)
    targets = torch.empty(len(codes), len(columns), device=codes.device)
    signs = codes.float()
    for g, own in enumerate(columns):
        pushed = signs[:, own] @ hessian[own]
        targets[:, g] = (pushed * original).sum(1)
        for h, other in enumerate(columns):
            products[:, g, h] = (pushed[:, other] * signs[:, other]).sum(1)
    if group_size == TENSOR:
        products, targets = products.sum(0, keepdim=True), targets.sum(0, keepdim=True)
    empty = products.diagonal(dim1=1, dim2=2) <= 0
    # A group of zeros alone has no scale; a 1 on its diagonal keeps the others' system solvable.
    products = products + torch.diag_embed(empty.float())
    fitted = torch.linalg.solve(products.double(), targets.double()[..., None])[..., 0].float()
    # A negative scale would turn codes round, and least squares may ask for one where columns are
    # nearly dependent.
    usable = ((fitted > 0) | empty).all(1, keepdim=True) & fitted.isfinite().all(1, keepdim=True)
    return torch.where(usable, fitted, otherwise.float()).masked_fill(empty, 0.0).to(torch.bfloat16)


def output_error(weight: Tensor, latents: Tensor, hessian: Tensor, group_size: int) -> float:
    """Return tr(dW H dWᵀ) / tr(W H Wᵀ) of rounding `latents` in place of `weight`."""
    codes, scales = ternary_codes(latents.float(), group_size)
    change = multiply_out(codes, scales, group_size) - weight.float()
    error = ((change @ hessian) * change).sum()
    return float(error / ((weight.float() @ hessian) * weight.float()).sum())


def _order_of_use(model: nn.Module, layers: dict[str, TernaryLinear], ids: Tensor) -> list[str]:
    """Return the names of the layers that a forward pass runs, by first use."""
    seen: dict[str, None] = {}

    def note(name: str) -> After:
        return lambda *_: seen.setdefault(name)

    with watching(after=[(layer, note(name)) for name, layer in layers.items()]):
        model(input_ids=ids[:1], use_cache=False)
    return list(seen)
