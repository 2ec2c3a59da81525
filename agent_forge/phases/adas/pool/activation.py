"""Edits that remove, weaken or strengthen one direction in what branches write to the residual
stream.

The direction is the mean difference between task text and plain text. It is baked into the
output matrices, so nothing runs at inference. Source of directional ablation: arXiv:2406.11717.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from agent_forge.phases.adas.experts import Tensors
from agent_forge.phases.adas.pool.technique import Edit, Subject

WRITERS = ("attention_out", "mlp_out")
READERS = ("query", "key", "value", "mlp_in")


def along(
    factor: float,
    where: Callable[[Subject], list[int]],
    roles: tuple[str, ...] = WRITERS,
) -> Callable[[Subject], Tensors]:
    """Return an edit that multiplies what matrices of some layers write along the task direction
    by `factor`.
    """

    def apply(subject: Subject) -> Tensors:
        weights: Tensors = {}
        for layer in where(subject):
            direction = _direction(subject, layer)
            for matrix in subject.of_role(*roles, layer=layer):
                weights[matrix.name] = scaled_along(subject.weight(matrix.name), direction, factor)
        return weights

    return apply


def _direction(subject: Subject, layer: int) -> Tensor:
    return subject.stream[layer] / subject.stream[layer].norm().clamp_min(1e-12)


def _blind(subject: Subject) -> Tensors:
    """Take the task direction away from what the middle layer reads."""
    weights: Tensors = {}
    for layer in _middle(subject):
        direction = _direction(subject, layer)
        for matrix in subject.of_role(*READERS, layer=layer):
            weight = subject.weight(matrix.name)
            if weight.shape[1] == len(direction):
                weights[matrix.name] = weight - (weight @ direction)[:, None] * direction[None]
    return weights


def _head_along(subject: Subject) -> Tensors:
    """Double the head of the middle layer that writes most along the task direction."""
    (layer,) = _middle(subject)
    direction = _direction(subject, layer)
    weights: Tensors = {}
    for matrix in subject.of_role("attention_out", layer=layer):
        blocks = list(subject.weight(matrix.name).chunk(subject.heads, dim=1))
        share = [
            float((direction @ block).norm() / block.norm().clamp_min(1e-12)) for block in blocks
        ]
        strongest = max(range(len(blocks)), key=share.__getitem__)
        blocks[strongest] = 2 * blocks[strongest]
        weights[matrix.name] = torch.cat(blocks, dim=1)
    return weights


def scaled_along(weight: Tensor, direction: Tensor, factor: float) -> Tensor:
    """Return weight (out, in) with what it writes along a unit direction (out) multiplied by
    `factor`.
    """
    return weight + (factor - 1) * direction[:, None] * (direction @ weight)[None]


def _middle(subject: Subject) -> list[int]:
    layers = subject.layers()
    return [layers[len(layers) // 2]]


FAMILY = "activation"
ABLATION = "Arditi et al. 2024, arXiv:2406.11717"
STEERING = "Chen et al. 2025, arXiv:2507.21509"
TECHNIQUES = (
    Edit("ablate_direction", FAMILY, "remove the task direction from a middle layer's writing",
         along(0.0, _middle), ABLATION),
    Edit("ablate_everywhere", FAMILY, "remove it from the writing of every layer",
         along(0.0, lambda subject: subject.layers()), ABLATION),
    Edit("ablate_reading", FAMILY, "remove it from what a middle layer reads", _blind, ABLATION),
    Edit("reflect_direction", FAMILY, "turn it round in a middle layer's writing",
         along(-1.0, _middle), "Householder 1958"),
    Edit("weaken_direction", FAMILY, "halve it in every layer",
         along(0.5, lambda subject: subject.layers()), STEERING),
    Edit("amplify_direction", FAMILY, "strengthen it by half in every layer",
         along(1.5, lambda subject: subject.layers()), STEERING),
    Edit("amplify_last", FAMILY, "double it in the last layer",
         along(2.0, lambda subject: subject.layers()[-1:]), STEERING),
    Edit("amplify_attention", FAMILY, "strengthen it in what attention writes",
         along(1.5, lambda subject: subject.layers(), ("attention_out",)), STEERING),
    Edit("amplify_mlp", FAMILY, "strengthen it in what MLPs write",
         along(1.5, lambda subject: subject.layers(), ("mlp_out",)), STEERING),
    Edit("amplify_head", FAMILY, "double the middle layer's head that writes it most", _head_along,
         "Li et al. 2023, arXiv:2306.03341"),
)  # fmt: skip
