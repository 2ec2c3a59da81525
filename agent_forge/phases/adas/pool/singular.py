"""Ways to join SVF experts: operators on the gains g_k = z_k - 1 of singular values before they
reach the matrix.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from agent_forge.phases.adas.experts import ExpertBank, Tensors
from agent_forge.phases.adas.pool.technique import Composition


def joined(
    join: Callable[[Tensor, Tensor, float], Tensor],
) -> Callable[[ExpertBank, Sequence[float]], Tensors]:
    """Return a composition. join(g (k, r), alpha (k), depth in [0, 1]) -> gain (r)."""

    def compose(bank: ExpertBank, alpha: Sequence[float]) -> Tensors:
        additions = {}
        for matrix in bank.matrices:
            gains = torch.stack([gain[matrix.name] for gain in bank.gains])
            strengths = torch.tensor(list(alpha), dtype=gains.dtype, device=gains.device)
            additions[matrix.name] = bank.spread(
                matrix.name, join(gains, strengths, matrix.layer / bank.depth)
            )
        return additions

    return compose


def _global(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    return alpha.mean() * gains.sum(0)


def _per_layer(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:
    return 2 * depth * (alpha[:, None] * gains).sum(0)


def _softmax(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    # Scaled by the largest strength, so that strengths of 0 add nothing.
    return alpha.abs().max() * (torch.softmax(alpha, 0)[:, None] * gains).sum(0)


def _geometric(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    return (alpha[:, None] * (1 + gains).clamp_min(0.1).log()).sum(0).expm1()


def _sign_consensus(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    weighted = alpha[:, None] * gains
    return torch.where(weighted.sign() == weighted.sum(0).sign(), weighted, 0.0).sum(0)


def _top_sigma(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    total = (alpha[:, None] * gains).sum(0)
    # Singular values come sorted, so the first half of them are the larger ones.
    return torch.where(
        torch.arange(len(total), device=total.device) < (len(total) + 1) // 2, total, 0.0
    )


def _strongest(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    weighted = alpha[:, None] * gains
    return weighted.gather(0, weighted.abs().argmax(0, keepdim=True))[0]


def _trimmed(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:  # noqa: ARG001
    """Drop the smaller half of each expert's gains before the sum."""
    count = gains.shape[1] // 2
    smallest = gains.abs().argsort(1)[:, :count]
    return (alpha[:, None] * gains.scatter(1, smallest, 0.0)).sum(0)


def _tail(gains: Tensor, alpha: Tensor, depth: float) -> Tensor:
    return (alpha[:, None] * gains).sum(0) - _top_sigma(gains, alpha, depth)


FAMILY = "singular"
SVF = "Sun et al. 2025, arXiv:2501.06252"
TECHNIQUES = (
    Composition("z_global", FAMILY, "one strength for all experts", joined(_global), source=SVF),
    Composition("z_per_layer", FAMILY, "strength rising with depth", joined(_per_layer), source=SVF),
    Composition("z_softmax", FAMILY, "experts compete by softmax", joined(_softmax)),
    Composition("z_geometric", FAMILY, "product of z to the power of its strength",
                joined(_geometric)),
    Composition("z_sign_consensus", FAMILY, "gains that agree with the majority",
                joined(_sign_consensus), 2, "Yadav et al. 2023, arXiv:2306.01708"),
    Composition("z_top_sigma", FAMILY, "gains of the larger half of singular values",
                joined(_top_sigma), source="Sharma et al. 2023, arXiv:2312.13558"),
    Composition("z_tail_sigma", FAMILY, "gains of the smaller half of singular values",
                joined(_tail), source="Wang et al. 2024, arXiv:2406.09044"),
    Composition("z_strongest", FAMILY, "largest gain of each singular value", joined(_strongest), 2,
                "Marczak et al. 2024, arXiv:2407.06322"),
    Composition("z_trimmed", FAMILY, "larger half of each expert's gains", joined(_trimmed),
                source="Yadav et al. 2023, arXiv:2306.01708"),
)  # fmt: skip
