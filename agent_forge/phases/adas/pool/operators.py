"""Ways to join task vectors: methods of the merge room on models W + alpha_k * D_k, and a few of
our own.

A strength scales the task vector inside the model that is merged, so that a small change of it
changes the result only a little.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from agent_forge import merge as merging
from agent_forge.phases.adas.experts import ExpertBank, Tensors
from agent_forge.phases.adas.pool.sources import sum_of
from agent_forge.phases.adas.pool.technique import Composition, cut_rank

Compose = Callable[[ExpertBank, Sequence[float]], Tensors]


def merged(name: str, *, with_base: bool = True, **settings: Any) -> Compose:
    """Return a composition by merge method `name`. settings: parameters that differ from the
    method's defaults; density (where the method has one) is the bank's.
    """

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        module = merging.load_method(name)
        active = [k for k, a in enumerate(alpha) if a != 0]
        each = _defaults(module.METHOD.each, bank, settings)
        shared = _defaults(module.METHOD.shared, bank, settings)
        additions = {}
        for matrix in bank.matrices:
            base = bank.base[matrix.name]
            tensors = [base + alpha[k] * bank.deltas[k][matrix.name] for k in active]
            merged = merging.merge_tensors(
                module, tensors, base if with_base else None, each=[each] * len(active), shared=shared,
                keys=[bank.domains[k] for k in active], name=matrix.name, seed=bank.seed,
            )  # fmt: skip
            additions[matrix.name] = merged - base
        return additions

    return compose


def _defaults(parameters: Any, bank: ExpertBank, settings: dict[str, Any]) -> dict[str, Any]:
    values = {}
    for key, parameter in parameters.items():
        value = settings.get(key, bank.density if key == "density" else parameter.default)
        values[key] = 1.0 if value is None else value
    return values


def _deltas(bank: ExpertBank, alpha: Sequence[float], name: str) -> list[Tensor]:
    return [a * d[name] for a, d in zip(alpha, bank.deltas, strict=True) if a != 0]


def _contrast(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
    additions = {}
    for name in bank.base:
        common = sum_of([d[name] for d in bank.deltas]) / len(bank.deltas)
        additions[name] = sum_of(
            [a * (d[name] - common) for a, d in zip(alpha, bank.deltas, strict=True)]
        )
    return additions


def _by_depth(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
    return {
        m.name: sum_of(_deltas(bank, alpha, m.name)) * (2 * m.layer / bank.depth)
        for m in bank.matrices
    }


def _strongest(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
    additions = {}
    for name in bank.base:
        stacked = torch.stack(_deltas(bank, alpha, name))
        additions[name] = stacked.gather(0, stacked.abs().argmax(0, keepdim=True))[0]
    return additions


def _orthogonal(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
    additions = {}
    for name in bank.base:
        basis: list[Tensor] = []
        for delta in _deltas(bank, alpha, name):
            rest = delta.clone()
            for other in basis:
                rest -= (rest * other).sum() / other.square().sum().clamp_min(1e-20) * other
            basis.append(rest)
        additions[name] = sum_of(basis)
    return additions


def _low_rank_sum(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
    sums = {name: sum_of(_deltas(bank, alpha, name)) for name in bank.base}
    return {
        name: cut_rank(total, max(1, round(bank.rank_share * min(total.shape))))
        for name, total in sums.items()
    }


FAMILY = "operator"
TECHNIQUES = (
    Composition("uniform_soup", FAMILY, "mean of the tuned models", merged("linear", with_base=False), 2),
    Composition("ties", FAMILY, "trim, elect signs, mean of the agreeing", merged("ties"), 2),
    Composition("dare_linear", FAMILY, "random drop and rescale, then sum", merged("dare_linear"), 2),
    Composition("dare_ties", FAMILY, "random drop and rescale, then sign election", merged("dare_ties"), 2),
    Composition("della", FAMILY, "drop by magnitude rank, then sign election", merged("della"), 2),
    Composition("breadcrumbs", FAMILY, "drop outliers and the smallest", merged("breadcrumbs"), 2),
    Composition("sce", FAMILY, "weights by variance, sign election", merged("sce"), 2),
    Composition("model_stock", FAMILY, "mean pulled to the base by the angle between them", merged("model_stock"), 2),
    Composition("karcher", FAMILY, "Riemannian mean of the tuned models", merged("karcher", with_base=False), 2),
    Composition("ram", FAMILY, "unique changes added, shared ones averaged", merged("ram"), 2),
    Composition("contrast", FAMILY, "what an expert has beyond the mean of all", _contrast),
    Composition("by_depth", FAMILY, "strength rising linearly with depth", _by_depth),
    Composition("strongest", FAMILY, "largest change of each entry", _strongest, 2),
    Composition("orthogonal", FAMILY, "each vector without what earlier ones have", _orthogonal, 2),
    Composition("low_rank_sum", FAMILY, "leading singular directions of the sum", _low_rank_sum, 2),
)  # fmt: skip
