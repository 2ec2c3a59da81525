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


def _drop_pair(subject: Subject) -> Tensors:
    """Skip the two neighbours that together change the stream least."""
    pairs = list(pairwise(subject.layers()))
    if not pairs:
        return {}
    chosen = min(pairs, key=lambda pair: sum(subject.influence[layer] for layer in pair))
    outs = [m for layer in chosen for m in subject.of_role(*WRITERS, layer=layer)]
    return {matrix.name: torch.zeros_like(subject.weight(matrix.name)) for matrix in outs}


def _share_mlp(subject: Subject) -> Tensors:
    """Give the layer of least influence its neighbour's MLP."""
    layers = subject.layers()
    least = min(layers, key=lambda i: subject.influence[i])
    place = layers.index(least)
    neighbours = layers[place + 1 : place + 2] or layers[max(place - 1, 0) : place]
    weights: Tensors = {}
    for role in ("mlp_in", "mlp_out"):
        own = subject.of_role(role, layer=least)
        other = subject.of_role(role, layer=neighbours[0]) if neighbours else []
        for one, two in zip(own, other, strict=False):
            if subject.weight(one.name).shape == subject.weight(two.name).shape:
                weights[one.name] = subject.weight(two.name).clone()
    return weights


def _prune_weights(subject: Subject) -> Tensors:
    """Zero the smallest fifth of the entries of each row that an MLP reads with."""
    weights: Tensors = {}
    for matrix in subject.of_role("mlp_in"):
        weight = subject.weight(matrix.name)
        smallest = weight.abs().argsort(1)[:, : weight.shape[1] // 5]
        weights[matrix.name] = weight.scatter(1, smallest, 0.0)
    return weights


def _clip_sigma(subject: Subject) -> Tensors:
    """Clip the largest singular value of what branches write to the second."""
    weights: Tensors = {}
    for matrix in subject.of_role(*WRITERS):
        u, s, vh = torch.linalg.svd(subject.weight(matrix.name).float(), full_matrices=False)
        second = float(s[1]) if len(s) > 1 else 0.0
        weights[matrix.name] = (u * s.clamp_max(second)) @ vh
    return weights


def _round_codes(subject: Subject) -> Tensors:
    """Round the MLPs' outputs to 15 levels per row."""
    weights: Tensors = {}
    for matrix in subject.of_role("mlp_out"):
        weight = subject.weight(matrix.name)
        step = (weight.abs().amax(1, keepdim=True) / 7).clamp_min(1e-20)
        weights[matrix.name] = (weight / step).round() * step
    return weights


def _equalise_heads(subject: Subject) -> Tensors:
    """Let all heads of a layer write with the same norm."""
    weights: Tensors = {}
    for matrix in subject.of_role("attention_out"):
        blocks = subject.weight(matrix.name).chunk(subject.heads, dim=1)
        mean = sum(float(block.norm()) for block in blocks) / len(blocks)
        weights[matrix.name] = torch.cat(
            [block * (mean / block.norm().clamp_min(1e-12)) for block in blocks], dim=1
        )
    return weights


def _flatten_rows(subject: Subject) -> Tensors:
    """Let the MLPs write to every place of the stream with the same norm."""
    weights: Tensors = {}
    for matrix in subject.of_role("mlp_out"):
        weight = subject.weight(matrix.name)
        norms = weight.norm(dim=1, keepdim=True).clamp_min(1e-12)
        weights[matrix.name] = weight * (norms.mean() / norms)
    return weights


def _centre_writing(subject: Subject) -> Tensors:
    """Take the mean over the stream's places away from what branches write."""
    return {
        matrix.name: subject.weight(matrix.name) - subject.weight(matrix.name).mean(0, keepdim=True)
        for matrix in subject.of_role(*WRITERS)
    }


WRITERS = ("attention_out", "mlp_out")
FAMILY = "architecture"
SHORT, BRANCHES = "Men et al. 2024, arXiv:2403.03853", "He et al. 2024, arXiv:2406.15786"
TECHNIQUES = (
    Edit("skip_layer", FAMILY, "skip the layer with the least block influence", _skip_layer, SHORT),
    Edit("skip_two_layers", FAMILY, "skip the two neighbours with the least influence", _drop_pair,
         "Gromov et al. 2024, arXiv:2403.17887"),
    Edit("drop_attention", FAMILY, "drop the attention branch that writes least",
         _drop("attention_out"), BRANCHES),
    Edit("drop_mlp", FAMILY, "drop the MLP branch that writes least", _drop("mlp_out"), BRANCHES),
    Edit("prune_head", FAMILY, "drop the head that writes least", _prune_head,
         "Michel et al. 2019, arXiv:1905.10650"),
    Edit("prune_neurons", FAMILY, "drop a tenth of the neurons of one MLP", _prune_neurons,
         "Ma et al. 2023, arXiv:2305.11627"),
    Edit("prune_weights", FAMILY, "zero a fifth of the entries that MLPs read with", _prune_weights,
         "Han et al. 2015, arXiv:1506.02626"),
    Edit("merge_value_heads", FAMILY, "let the two most similar value heads share their weights",
         _merge_value_heads, "Ainslie et al. 2023, arXiv:2305.13245"),
    Edit("equalise_heads", FAMILY, "let all heads of a layer write with one norm", _equalise_heads),
    Edit("laser", FAMILY, "cut the rank of the last MLP's output", _laser,
         "Sharma et al. 2023, arXiv:2312.13558"),
    Edit("clip_sigma", FAMILY, "clip the largest singular value of what branches write",
         _clip_sigma, "Yoshida and Miyato 2017, arXiv:1705.10941"),
    Edit("round_codes", FAMILY, "round what MLPs write to 15 levels per row", _round_codes),
    Edit("swap_layers", FAMILY, "swap the two neighbours with the least influence", _swap_layers,
         "Sun et al. 2024, arXiv:2407.09298"),
    Edit("blend_layers", FAMILY, "move those two towards each other", _blend_layers,
         "Yang et al. 2024, arXiv:2402.11187"),
    Edit("share_mlp", FAMILY, "give the layer of least influence its neighbour's MLP", _share_mlp,
         "Lan et al. 2019, arXiv:1909.11942"),
    Edit("sharpen_attention", FAMILY, "attention temperature of 1/1.1", _sharpen),
    Edit("boost_mlp", FAMILY, "MLPs write 5% more", _boost_mlp),
    Edit("flatten_rows", FAMILY, "MLPs write to every place with one norm", _flatten_rows),
    Edit("centre_writing", FAMILY, "branches write without their mean", _centre_writing),
)  # fmt: skip
