"""Take over only the changes that matter: |X - B| times the rows' KL divergence, above median + 1.5 IQR."""

import torch
from torch import Tensor

from agent_forge.merge.method import Inputs, Method

METHOD = Method(summary="take over the important changes only", base="required", models=(1, 1))


def merge(inputs: Inputs) -> Tensor:
    """Return the base with the important entries replaced."""
    base, other = inputs.origin(), inputs.tensors[0]
    p, q = torch.log_softmax(other.double(), -1), torch.log_softmax(base.double(), -1)
    divergence = (p.exp() * (p - q)).sum(-1, keepdim=True)
    importance = ((other - base).abs().double() * divergence).to(base.dtype)
    flat = importance.flatten().sort().values
    low, middle, high = (_quantile(flat, share) for share in (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + 1.5 * (high - low), other, base)


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """Return a quantile of a sorted flat tensor, interpolated linearly (torch.quantile refuses large tensors)."""
    place = share * (ordered.numel() - 1)
    below = int(place)
    above = min(below + 1, ordered.numel() - 1)
    return torch.lerp(ordered[below], ordered[above], place - below)
