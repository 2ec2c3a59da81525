"""Compositions by the source of their vectors: singular gains or task vectors, whole or reduced.

Each adds sum_k alpha_k * vector_k.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agent_forge.merge import load_method, merge_tensors
from agent_forge.phases.adas.experts import ExpertBank, Tensors
from agent_forge.phases.adas.pool.technique import Composition, cut_rank

Compose = Callable[[ExpertBank, Sequence[float]], Tensors]


def svf(parts: tuple[str, ...]) -> Compose:
    """Return the weighted sum of singular gains, in matrices of some parts of the layers."""

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        names = [matrix.name for matrix in bank.matrices if matrix.part in parts]
        return {
            name: bank.spread(
                name, sum_of([a * g[name] for a, g in zip(alpha, bank.gains, strict=True)])
            )
            for name in names
        }

    return compose


def task(
    reduce: Callable[[Tensor, ExpertBank], Tensor],
    parts: tuple[str, ...] = ("attention", "mlp", "other"),
) -> Compose:
    """Return the weighted sum of task vectors, each reduced first."""

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        names = [matrix.name for matrix in bank.matrices if matrix.part in parts]
        return {
            name: sum_of(
                [
                    a * reduce(d[name], bank)
                    for a, d in zip(alpha, bank.deltas, strict=True)
                    if a != 0
                ]
            )
            for name in names
        }

    return compose


def sum_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    total = tensors[0].clone()
    for tensor in tensors[1:]:
        total += tensor
    return total


def _trimmed(delta: Tensor, bank: ExpertBank) -> Tensor:
    """Return the largest entries of a task vector: TIES of one model that starts from 0."""
    density = {"weight": 1.0, "density": bank.density}
    shared = {"normalize": False, "lambda": 1.0, "rescale": False}
    return merge_tensors(
        load_method("ties"), [delta], torch.zeros_like(delta), each=[density], shared=shared
    )


def _ranked(delta: Tensor, bank: ExpertBank) -> Tensor:
    return cut_rank(delta, max(1, round(bank.rank_share * min(delta.shape))))


def _rows(delta: Tensor, bank: ExpertBank) -> Tensor:
    """Return the whole rows of largest norm of a task vector, and zeros for the others."""
    norms = delta.norm(dim=1)
    count = max(1, round(bank.density * len(norms)))
    chosen = torch.zeros_like(norms)
    chosen[norms.argsort(descending=True)[:count]] = 1.0
    return delta * chosen[:, None]


def _flattened(delta: Tensor, bank: ExpertBank) -> Tensor:  # noqa: ARG001
    """Return a task vector of as large a norm whose singular values are all equal."""
    return flat_spectrum(delta)


def flat_spectrum(delta: Tensor) -> Tensor:
    """Return U V^T of a matrix (out, in) at the matrix's Frobenius norm; zeros stay zeros."""
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    return s.square().mean().sqrt() * (u @ vh)


def principal(keep: bool) -> Compose:
    """Return the weighted sum of task vectors inside the weight's leading singular directions
    (keep), or of what is left of them outside.
    """

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        additions = {}
        for matrix in bank.matrices:
            u, _, vh = bank.factors[matrix.name]
            rank = max(1, round(bank.rank_share * u.shape[1]))
            left, right = u[:, :rank], vh[:rank]
            total = sum_of(
                [a * d[matrix.name] for a, d in zip(alpha, bank.deltas, strict=True) if a != 0]
            )
            inside = left @ (left.T @ total @ right.T) @ right
            additions[matrix.name] = inside if keep else total - inside
        return additions

    return compose


def late_half(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
    """Return the weighted sum of task vectors in the later half of the layers alone."""
    middle = (min(m.layer for m in bank.matrices) + bank.depth) / 2
    return {
        m.name: sum_of([a * d[m.name] for a, d in zip(alpha, bank.deltas, strict=True) if a != 0])
        for m in bank.matrices
        if m.layer > middle
    }


EVERY = ("attention", "mlp", "other")
SVF, TASK = "Sun et al. 2025, arXiv:2501.06252", "Ilharco et al. 2023, arXiv:2212.04089"
TECHNIQUES = (
    Composition("svf_all", "source", "singular gains of every matrix", svf(EVERY), source=SVF),
    Composition("svf_attention", "source", "singular gains of attention only", svf(("attention",)),
                source=SVF),
    Composition("svf_mlp", "source", "singular gains of the MLPs only", svf(("mlp",)), source=SVF),
    Composition("task_full", "source", "whole task vectors", task(lambda delta, _: delta),
                source=TASK),
    Composition("task_trimmed", "source", "largest entries of task vectors", task(_trimmed),
                source="Yadav et al. 2023, arXiv:2306.01708"),
    Composition("task_rank", "source", "leading singular directions of task vectors", task(_ranked),
                source="Gargiulo et al. 2024, arXiv:2412.00081"),
    Composition("task_sign", "source", "signs of task vectors at their mean size",
                task(lambda delta, _: delta.sign() * delta.abs().mean()),
                source="Liu et al. 2024, arXiv:2402.10193"),
    Composition("task_mlp", "source", "task vectors of the MLPs only",
                task(lambda delta, _: delta, ("mlp",)), source="Jin et al. 2024, arXiv:2407.07089"),
    Composition("task_attention", "source", "task vectors of attention only",
                task(lambda delta, _: delta, ("attention",)),
                source="Jin et al. 2024, arXiv:2407.07089"),
    Composition("task_late", "source", "task vectors of the later half of the layers", late_half),
    Composition("task_rows", "source", "rows of largest norm of task vectors", task(_rows)),
    Composition("task_flat", "source", "task vectors with equal singular values", task(_flattened),
                source="Marczak et al. 2025, arXiv:2502.04959"),
    Composition("task_principal", "source", "task vectors inside the weight's leading directions",
                principal(True), source="Meng et al. 2024, arXiv:2404.02948"),
    Composition("task_minor", "source", "task vectors outside the weight's leading directions",
                principal(False), source="Wang et al. 2024, arXiv:2406.09044"),
)  # fmt: skip
