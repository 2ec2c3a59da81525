"""The straight-through estimator: compute with one tensor, send the gradient to another. Source: arXiv:1308.3432."""

from typing import Any

import torch
from torch import Tensor


def straight_through(value: Tensor, replacement: Tensor) -> Tensor:
    """Return `replacement`; the gradient goes to `value` unchanged."""
    function = _Reverse if torch.compiler.is_compiling() else StraightThrough
    result: Tensor = function.apply(value, replacement)  # type: ignore[no-untyped-call]
    return result


class _Reverse(torch.autograd.Function):
    """The reverse mode alone: torch.compile cannot trace a function that has a forward mode of its own."""

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
