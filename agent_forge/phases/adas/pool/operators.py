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
from agent_forge.phases.adas.pool.sources import flat_spectrum, sum_of
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


def pair(name: str, *, against_base: bool, **settings: Any) -> Compose:
    """Return a merge of the two experts with the largest strengths by method `name`.

    against_base: the method takes one model and a base: the stronger expert stands for the base.
    """

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        module = merging.load_method(name)
        first, second = sorted(range(len(alpha)), key=lambda k: (-abs(alpha[k]), k))[:2]
        each = _defaults(module.METHOD.each, bank, settings)
        shared = _defaults(module.METHOD.shared, bank, settings)
        additions = {}
        for matrix in bank.matrices:
            base = bank.base[matrix.name]
            one, other = (base + alpha[k] * bank.deltas[k][matrix.name] for k in (first, second))
            tensors, stand_in = ([other], one) if against_base else ([one, other], None)
            joined = merging.merge_tensors(
                module, tensors, stand_in, each=[each] * len(tensors), shared=shared,
                keys=[bank.domains[k] for k in (first, second)][-len(tensors) :],
                name=matrix.name, seed=bank.seed,
            )  # fmt: skip
            additions[matrix.name] = joined - base
        return additions

    return compose


def entrywise(join: Callable[[Tensor], Tensor]) -> Compose:
    """Return a composition: join(scaled task vectors (experts, out, in)) -> (out, in)."""

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        return {name: join(torch.stack(_deltas(bank, alpha, name))) for name in bank.base}

    return compose


def _median(stacked: Tensor) -> Tensor:
    return len(stacked) * stacked.quantile(0.5, dim=0)


def _consensus(stacked: Tensor) -> Tensor:
    """Keep the entries of the sum that at least two experts need: those where an expert's own
    change outweighs two fifths of all others'.
    """
    total = stacked.sum(0)
    needed = stacked.abs() >= 0.4 * (total - stacked).abs()
    return torch.where(needed.sum(0) >= 2, total, 0.0)


def _cautious(stacked: Tensor) -> Tensor:
    signs = stacked.sign()
    agreed = (signs == signs[0]).all(0)
    return torch.where(agreed, signs[0] * stacked.abs().amin(0), 0.0)


def _weighted_by_size(stacked: Tensor) -> Tensor:
    sizes = stacked.abs()
    return (sizes * stacked).sum(0) / sizes.sum(0).clamp_min(1e-20)


def _dominant(stacked: Tensor) -> Tensor:
    return stacked[int(stacked.flatten(1).norm(dim=1).argmax())]


def _norm_matched(stacked: Tensor) -> Tensor:
    total = stacked.sum(0)
    mean = stacked.flatten(1).norm(dim=1).mean()
    return total * mean / total.norm().clamp_min(1e-20)


def _flat_sum(stacked: Tensor) -> Tensor:
    return flat_spectrum(stacked.sum(0))


def _singular_vectors(stacked: Tensor) -> Tensor:
    """Join the leading directions of each expert, made orthogonal to one another's."""
    rank = max(1, min(stacked.shape[1:]) // len(stacked))
    u, s, vh = torch.linalg.svd(stacked, full_matrices=False)
    lefts = torch.cat(list(u[..., :rank]), dim=1)
    rights = torch.cat(list(vh[:, :rank]), dim=0)
    return (_nearest_orthogonal(lefts) * s[:, :rank].flatten()) @ _nearest_orthogonal(rights)


def _nearest_orthogonal(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


FAMILY = "operator"
SOUP, TIES, DARE, DELLA = (
    "Wortsman et al. 2022, arXiv:2203.05482", "Yadav et al. 2023, arXiv:2306.01708",
    "Yu et al. 2023, arXiv:2311.03099", "Deep et al. 2024, arXiv:2406.11617",
)  # fmt: skip
BREADCRUMBS, RAM = "Davari and Belilovsky 2023, arXiv:2312.06795", "merge/methods/ram.py"
TECHNIQUES = (
    Composition("uniform_soup", FAMILY, "mean of the tuned models",
                merged("linear", with_base=False), 2, SOUP),
    Composition("ties", FAMILY, "trim, elect signs, mean of the agreeing", merged("ties"), 2, TIES),
    Composition("dare_linear", FAMILY, "random drop and rescale, then sum", merged("dare_linear"),
                2, DARE),
    Composition("dare_ties", FAMILY, "random drop and rescale, then sign election",
                merged("dare_ties"), 2, DARE),
    Composition("della", FAMILY, "drop by magnitude rank, then sign election", merged("della"),
                2, DELLA),
    Composition("della_linear", FAMILY, "drop by magnitude rank, then sum", merged("della_linear"),
                2, DELLA),
    Composition("breadcrumbs", FAMILY, "drop outliers and the smallest", merged("breadcrumbs"),
                2, BREADCRUMBS),
    Composition("breadcrumbs_ties", FAMILY, "drop outliers and the smallest, then elect signs",
                merged("breadcrumbs_ties"), 2, BREADCRUMBS),
    Composition("sce", FAMILY, "weights by variance, sign election", merged("sce"), 2,
                "Wan et al. 2024, arXiv:2408.07990"),
    Composition("model_stock", FAMILY, "mean pulled to the base by the angle between them",
                merged("model_stock"), 2, "Jang et al. 2024, arXiv:2403.19522"),
    Composition("karcher", FAMILY, "Riemannian mean of the tuned models",
                merged("karcher", with_base=False), 2, "Karcher 1977"),
    Composition("multislerp", FAMILY, "spherical mean around the arithmetic mean",
                merged("multislerp", with_base=False), 2, "merge/methods/multislerp.py"),
    Composition("slerp_pair", FAMILY, "halfway on the arc between the two strongest experts",
                pair("slerp", against_base=True, t=0.5), 2, "Shoemake 1985"),
    Composition("nuslerp_pair", FAMILY, "the same arc row by row",
                pair("nuslerp", against_base=False, nuslerp_flatten=False, nuslerp_row_wise=True),
                2, "Shoemake 1985; merge/methods/nuslerp.py"),
    Composition("nearswap_pair", FAMILY, "the second expert's entries where both are near",
                pair("nearswap", against_base=True, t=0.001), 2, "merge/methods/nearswap.py"),
    Composition("fusion_pair", FAMILY, "the second expert's important changes over the first",
                pair("arcee_fusion", against_base=True), 2, "merge/methods/arcee_fusion.py"),
    Composition("ram", FAMILY, "unique changes added, shared ones averaged", merged("ram"), 2, RAM),
    Composition("contrast", FAMILY, "what an expert has beyond the mean of all", _contrast),
    Composition("by_depth", FAMILY, "strength rising linearly with depth", _by_depth,
                source="Wang et al. 2024, arXiv:2410.17146"),
    Composition("strongest", FAMILY, "largest change of each entry", _strongest, 2,
                "Marczak et al. 2024, arXiv:2407.06322"),
    Composition("orthogonal", FAMILY, "each vector without what earlier ones have", _orthogonal, 2),
    Composition("low_rank_sum", FAMILY, "leading singular directions of the sum", _low_rank_sum, 2,
                "Eckart and Young 1936"),
    Composition("median", FAMILY, "median of each entry, as large as a sum", entrywise(_median), 2),
    Composition("consensus", FAMILY, "entries of the sum that two experts need",
                entrywise(_consensus), 2, "Wang et al. 2024, arXiv:2405.07813"),
    Composition("cautious", FAMILY, "smallest change where all signs agree", entrywise(_cautious),
                2),
    Composition("by_size", FAMILY, "mean of each entry weighted by its own size",
                entrywise(_weighted_by_size), 2),
    Composition("dominant", FAMILY, "in each matrix the expert that changes it most",
                entrywise(_dominant), 2),
    Composition("norm_matched", FAMILY, "the sum at the mean norm of its parts",
                entrywise(_norm_matched), 2),
    Composition("flat_sum", FAMILY, "the sum with equal singular values", entrywise(_flat_sum), 2,
                "Marczak et al. 2025, arXiv:2502.04959"),
    Composition("singular_vectors", FAMILY, "leading directions of each expert, made orthogonal",
                entrywise(_singular_vectors), 2, "Gargiulo et al. 2024, arXiv:2412.00081"),
)  # fmt: skip
