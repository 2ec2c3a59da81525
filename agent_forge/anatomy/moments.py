"""Sums of x xᵀ over the inputs x of a layer.

Divided by the number of inputs they are E[x xᵀ], the Hessian of a layer's squared output error.
Error compensation (bitnet) and sensitivities (compress) need it.
"""

from collections.abc import Callable, Hashable

import torch
from torch import Tensor


def second_moment(x: Tensor, rounded: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return Σ x xᵀ over x (..., width): (width, width) float32, also for a model in bfloat16.

    rounded: the rounding that a layer applies to its inputs (n, width) before it multiplies them.
    """
    rows = x.detach().flatten(0, -2).float()
    rows = rows if rounded is None else rounded(rows)
    with torch.autocast(x.device.type, enabled=False):
        return rows.T @ rows


class SharedMoments:
    """Second moments of layers in the order they run.

    Layers that read one tensor share its product.

    Queries, keys and values have one input, and so have the two halves of a gated MLP. Only the
    last product is kept.
    """

    def __init__(self) -> None:
        self._input: Tensor | None = None
        self._kind: Hashable = None
        self._product: Tensor | None = None

    def of(
        self, x: Tensor, rounded: Callable[[Tensor], Tensor] | None = None, kind: Hashable = None
    ) -> Tensor:
        """Return Σ x xᵀ of x (..., width): (width, width) float32.

        kind: distinguishes the ways of rounding one input.
        """
        if self._product is None or self._input is not x or self._kind != kind:
            self._input, self._kind, self._product = x, kind, second_moment(x, rounded)
        return self._product

    def forget(self) -> None:
        """Let the last input and its product go."""
        self._input = self._product = None
