"""Select, calculate, erase: keep entries of high variance, weigh models by energy, elect signs.

Source: arXiv:2408.07990.
"""

import torch
from torch import Tensor

from agent_forge.merge import sparsify
from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="variance selection, energy weights, sign election",
    base="required",
    shared={"select_topk": Number(1.0, low=0.0, high=1.0, above=True)},
)


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    deltas = torch.stack(inputs.deltas())
    share = inputs.shared["select_topk"]
    if share < 1 and len(deltas) > 1:
        # The share counts the entries that vary at all.
        spread = deltas.var(0, unbiased=False)
        kept = max(1, int(share * int((spread > 0).sum())))
        deltas = torch.where(sparsify.largest(spread.flatten(), kept).view_as(spread), deltas, 0.0)
    energy = deltas.double().square().flatten(1).mean(1)
    weights = (energy / energy.sum() if float(energy.sum()) > 0 else torch.full_like(energy, 1 / len(energy))).to(
        deltas.dtype
    )
    weights = weights.view(-1, *[1] * (deltas.dim() - 1))
    positive = deltas.sum(0) >= 0
    agrees = torch.where(positive, deltas > 0, deltas < 0)
    divisor = (agrees * weights).sum(0)
    total = torch.where(agrees, deltas * weights, 0.0).sum(0)
    return inputs.origin() + total / torch.where(divisor < 1e-12, 1.0, divisor)
