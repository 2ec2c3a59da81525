"""Edits that remove, weaken or strengthen one direction in what branches write to the residual
stream.

The direction is the mean difference between task text and plain text. It is baked into the
output matrices, so nothing runs at inference. Source of directional ablation: arXiv:2406.11717.
"""

from collections.abc import Callable

from torch import Tensor

from agent_forge.phases.adas.experts import Tensors
from agent_forge.phases.adas.pool.technique import Edit, Subject


def along(factor: float, where: Callable[[Subject], list[int]]) -> Callable[[Subject], Tensors]:
    """Return an edit that multiplies what some layers write along the task direction by
    `factor`.
    """

    def apply(subject: Subject) -> Tensors:
        weights: Tensors = {}
        for layer in where(subject):
            direction = subject.stream[layer] / subject.stream[layer].norm().clamp_min(1e-12)
            for matrix in subject.of_role("attention_out", "mlp_out", layer=layer):
                weights[matrix.name] = scaled_along(subject.weight(matrix.name), direction, factor)
        return weights

    return apply


def scaled_along(weight: Tensor, direction: Tensor, factor: float) -> Tensor:
    """Return weight (out, in) with what it writes along a unit direction (out) multiplied by
    `factor`.
    """
    return weight + (factor - 1) * direction[:, None] * (direction @ weight)[None]


def _middle(subject: Subject) -> list[int]:
    layers = subject.layers()
    return [layers[len(layers) // 2]]


FAMILY = "activation"
TECHNIQUES = (
    Edit(
        "ablate_direction",
        FAMILY,
        "remove the task direction from a middle layer's writing",
        along(0.0, _middle),
    ),
    Edit(
        "weaken_direction",
        FAMILY,
        "halve it in every layer",
        along(0.5, lambda subject: subject.layers()),
    ),
    Edit(
        "amplify_direction",
        FAMILY,
        "strengthen it by half in every layer",
        along(1.5, lambda subject: subject.layers()),
    ),
    Edit(
        "amplify_last",
        FAMILY,
        "double it in the last layer",
        along(2.0, lambda subject: subject.layers()[-1:]),
    ),
)
