"""Edits of architecture, done in the weights so that every tool still opens the model.

A branch whose output matrix is zero is skipped exactly, since layers are pre-norm and residual.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from agent_forge.phases.adas.experts import Tensors
from agent_forge.phases.adas.pool.technique import Edit, Subject, cut_rank


def _skip_layer(subject: Subject) -> Tensors:
    layer = min(subject.layers(), key=lambda i: subject.influence[i])
    outs = subject.of_role("attention_out", "mlp_out", layer=layer)
    return {matrix.name: torch.zeros_like(subject.weight(matrix.name)) for matrix in outs}


def _drop(role: str) -> Callable[[Subject], Tensors]:
    def apply(subject: Subject) -> Tensors:
        matrix = min(subject.of_role(role), key=lambda m: subject.share[m.name])
        return {matrix.name: torch.zeros_like(subject.weight(matrix.name))}

    return apply


def _prune_head(subject: Subject) -> Tensors:
    contributions = []
    for matrix in subject.of_role("attention_out"):
        weight = subject.weight(matrix.name)
        for head, block in enumerate(weight.chunk(subject.heads, dim=1)):
            contributions.append(
                (float(block.norm()) * subject.share[matrix.name], matrix.name, head)
            )
    _, name, head = min(contributions)
    return {name: _without_columns(subject.weight(name), head, subject.heads)}


def _without_columns(weight: Tensor, block: int, blocks: int) -> Tensor:
    size = weight.shape[1] // blocks
    changed = weight.clone()
    changed[:, block * size : (block + 1) * size] = 0
    return changed


def _prune_neurons(subject: Subject) -> Tensors:
    matrix = min(subject.of_role("mlp_out"), key=lambda m: subject.share[m.name])
    weight = subject.weight(matrix.name)
    count = max(1, weight.shape[1] // 10)
    changed = weight.clone()
    changed[:, weight.norm(dim=0).argsort()[:count]] = 0
    return {matrix.name: changed}


def _merge_value_heads(subject: Subject) -> Tensors:
    best: tuple[float, str, int, int] | None = None
    for matrix in subject.of_role("value"):
        heads = subject.weight(matrix.name).chunk(subject.kv_heads, dim=0)
        for i, a in enumerate(heads):
            for j in range(i + 1, len(heads)):
                cosine = float(torch.cosine_similarity(a.flatten(), heads[j].flatten(), dim=0))
                if best is None or cosine > best[0]:
                    best = (cosine, matrix.name, i, j)
    if best is None:
        return {}
    _, name, i, j = best
    blocks = list(subject.weight(name).chunk(subject.kv_heads, dim=0))
    blocks[i] = blocks[j] = (blocks[i] + blocks[j]) / 2
    return {name: torch.cat(blocks)}


def _laser(subject: Subject) -> Tensors:
    matrix = subject.of_role("mlp_out")[-1]
    weight = subject.weight(matrix.name)
    return {
        matrix.name: cut_rank(weight, max(1, round((1 - subject.rank_share) * min(weight.shape))))
    }


def _swap_layers(subject: Subject) -> Tensors:
    pairs = list(pairwise(subject.layers()))
    if not pairs:
        return {}
    first, second = min(
        pairs, key=lambda pair: subject.influence[pair[0]] + subject.influence[pair[1]]
    )
    weights: Tensors = {}
    for a, b in zip(_layer(subject, first), _layer(subject, second), strict=False):
        wa, wb = subject.weight(a), subject.weight(b)
        if wa.shape == wb.shape:
            weights[a], weights[b] = wb.clone(), wa.clone()
    return weights


def _layer(subject: Subject, layer: int) -> list[str]:
    return [matrix.name for matrix in subject.matrices if matrix.layer == layer]


def _blend_layers(subject: Subject) -> Tensors:
    """Move the two most similar neighbours a quarter of the way to their mean."""
    swapped = _swap_layers(subject)
    return {name: torch.lerp(subject.weight(name), other, 0.125) for name, other in swapped.items()}


def _sharpen(subject: Subject) -> Tensors:
    return {matrix.name: 1.1 * subject.weight(matrix.name) for matrix in subject.of_role("query")}


def _boost_mlp(subject: Subject) -> Tensors:
    return {
        matrix.name: 1.05 * subject.weight(matrix.name) for matrix in subject.of_role("mlp_out")
    }


FAMILY = "architecture"
TECHNIQUES = (
    Edit("skip_layer", FAMILY, "skip the layer with the least block influence", _skip_layer),
    Edit(
        "drop_attention",
        FAMILY,
        "drop the attention branch that writes least",
        _drop("attention_out"),
    ),
    Edit("drop_mlp", FAMILY, "drop the MLP branch that writes least", _drop("mlp_out")),
    Edit("prune_head", FAMILY, "drop the head that writes least", _prune_head),
    Edit("prune_neurons", FAMILY, "drop a tenth of the neurons of one MLP", _prune_neurons),
    Edit(
        "merge_value_heads",
        FAMILY,
        "let the two most similar value heads share their weights",
        _merge_value_heads,
    ),
    Edit("laser", FAMILY, "cut the rank of the last MLP's output", _laser),
    Edit("swap_layers", FAMILY, "swap the two neighbours with the least influence", _swap_layers),
    Edit("blend_layers", FAMILY, "move those two towards each other", _blend_layers),
    Edit("sharpen_attention", FAMILY, "attention temperature of 1/1.1", _sharpen),
    Edit("boost_mlp", FAMILY, "MLPs write 5% more", _boost_mlp),
)
