"""Muon: momentum, orthogonalised by Newton-Schulz, for 2-D hidden matrices. Matrices of one shape
are turned together.

Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Where the iteration
runs in bfloat16, the update of each matrix is the one of `torch.optim.Muon`, bit for bit on CPU;
batched products over equal shapes and fused element-wise steps are what is faster (a small model
has dozens of equal small matrices). The state keeps torch's name, `momentum_buffer`.

Departure: torch iterates in bfloat16 everywhere. On a CPU without instructions for it that takes
about ten times as long as float32 (measured on AVX2), so such a CPU iterates in float32.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic with the steepest slope at zero
ITERATIONS = 5
EPS = 1e-7
ENTRIES_AT_ONCE = 1 << 24  # largest stack of matrices: 32 MiB in bfloat16, 64 in float32


class Muon(torch.optim.Optimizer):
    """The optimiser; every parameter is a matrix."""

    def __init__(
        self, params: Iterable[Any], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        del closure  # torch's signature
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for same in _by_shape(parameters):
                self._update(same, group)

    def _update(self, parameters: Sequence[Tensor], group: Mapping[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        buffers = [self._buffer(parameter) for parameter in parameters]
        momentum, lr = group["momentum"], group["lr"]
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
        # Nesterov: the gradient moved towards the average.
        ahead = torch._foreach_lerp(gradients, buffers, momentum)
        turned = orthogonalised([_whole(update) for update in ahead])
        rows, columns = parameters[0].shape
        torch._foreach_mul_(list(parameters), 1 - lr * group["weight_decay"])
        # An output's root mean square then changes by at most lr times its input's, whatever the
        # shape: the RMS-to-RMS norm of a matrix is its largest singular value times
        # sqrt(columns / rows) (Jordan 2024; wide matrices keep a factor of 1).
        scaled = -lr * math.sqrt(max(1.0, rows / columns))
        # One cast for all: then the sum over all matrices is one launch where the device has it.
        updates = [
            _like(update, like)
            for update, like in zip(turned.to(parameters[0].dtype), parameters, strict=True)
        ]
        torch._foreach_add_(list(parameters), updates, alpha=scaled)

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalised(updates: Sequence[Tensor]) -> Tensor:
    """Return matrices of one shape with their singular values brought near 1.

    The result is (matrices, rows, columns) in `iteration_dtype` of their device.

    Source: the quintic Newton-Schulz iteration of Jordan 2024.
    """
    first, second, third = COEFFICIENTS
    # The Gram matrix is made over the shorter side, which is less work; turning a matrix turns its
    # result alike.
    tall = updates[0].shape[0] > updates[0].shape[1]
    rounded_NRC = torch.stack(list(updates)).to(iteration_dtype(updates[0].device))
    norms_N = torch.stack(torch._foreach_norm(list(rounded_NRC.unbind())))
    x_NRC = rounded_NRC.mT.contiguous() if tall else rounded_NRC
    # The iteration needs singular values of at most 1, and the Frobenius norm bounds the largest.
    x_NRC = x_NRC / norms_N.clamp(min=EPS)[:, None, None]
    for _ in range(ITERATIONS):
        gram_NRR = x_NRC @ x_NRC.mT
        poly_NRR = torch.baddbmm(gram_NRR, gram_NRR, gram_NRR, beta=second, alpha=third)
        x_NRC = torch.baddbmm(x_NRC, poly_NRR, x_NRC, beta=first)
    return x_NRC.mT.contiguous() if tall else x_NRC


def iteration_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float32 for a CPU that has no instructions for bfloat16."""
    slow = device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported()
    return torch.float32 if slow else torch.bfloat16


def _by_shape(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the parameters in stacks of one shape, device and dtype that stay below
    ENTRIES_AT_ONCE.
    """
    groups: dict[tuple[Any, ...], list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault((*parameter.shape, parameter.device, parameter.dtype), []).append(
            parameter
        )
    for group in groups.values():
        most = max(ENTRIES_AT_ONCE // group[0].numel(), 1)
        for start in range(0, len(group), most):
            yield group[start : start + most]


def _whole(update: Tensor) -> Tensor:
    """Return a sharded matrix whole: the iteration needs all of it."""
    gather: Any = getattr(update, "full_tensor", None)
    return update if gather is None else gather()


def _like(update: Tensor, parameter: Tensor) -> Tensor:
    """Return a whole update laid out as its parameter is."""
    if not hasattr(parameter, "full_tensor"):
        return update
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = parameter
    return distribute_tensor(update, sharded.device_mesh, sharded.placements, src_data_rank=None)
