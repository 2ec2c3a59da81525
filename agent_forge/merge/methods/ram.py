"""Add changes that only one model made whole, and average those that several made. A change is |X - B| > epsilon."""

import torch
from torch import Tensor

from agent_forge.merge.method import Inputs, Method, Number

EPSILON = Number(1e-5, low=0.0)
METHOD = Method(summary="unique changes whole, shared ones averaged", base="required", shared={"epsilon": EPSILON})


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    deltas = torch.stack(inputs.deltas())
    changed = deltas.abs() > inputs.shared["epsilon"]
    return inputs.origin() + torch.where(changed, deltas, 0.0).sum(0) / changed.sum(0).clamp_min(1)
