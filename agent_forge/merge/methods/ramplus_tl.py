"""RAM with unique changes enlarged by 1 + r * clip(rho, 0, alpha), rho = overlapping / unique changes of that model."""

import torch
from torch import Tensor

from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.methods.ram import EPSILON

METHOD = Method(
    summary="RAM with enlarged unique changes",
    base="required",
    shared={"epsilon": EPSILON, "r": Number(0.1, low=0.0), "alpha": Number(0.2, low=0.0)},
)


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    deltas = torch.stack(inputs.deltas())
    changed = deltas.abs() > inputs.shared["epsilon"]
    count = changed.sum(0)
    result = inputs.origin() + torch.where((count > 1) & changed, deltas, 0.0).sum(0) / count.clamp_min(1)
    for delta, mask in zip(deltas, changed, strict=True):
        unique, overlapping = int((mask & (count == 1)).sum()), int((mask & (count > 1)).sum())
        ratio = overlapping / unique if unique else 0.0
        factor = 1 + inputs.shared["r"] * min(max(ratio, 0.0), inputs.shared["alpha"])
        result += torch.where(mask & (count == 1), delta * factor, 0.0)
    return result
