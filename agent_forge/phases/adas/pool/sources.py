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


EVERY = ("attention", "mlp", "other")
TECHNIQUES = (
    Composition("svf_all", "source", "singular gains of every matrix", svf(EVERY)),
    Composition("svf_attention", "source", "singular gains of attention only", svf(("attention",))),
    Composition("svf_mlp", "source", "singular gains of the MLPs only", svf(("mlp",))),
    Composition("task_full", "source", "whole task vectors", task(lambda delta, _: delta)),
    Composition("task_trimmed", "source", "largest entries of task vectors", task(_trimmed)),
    Composition("task_rank", "source", "leading singular directions of task vectors", task(_ranked)),
    Composition("task_sign", "source", "signs of task vectors at their mean size",
                task(lambda delta, _: delta.sign() * delta.abs().mean())),
    Composition("task_mlp", "source", "task vectors of the MLPs only", task(lambda delta, _: delta, ("mlp",))),
)  # fmt: skip
