"""Pull entries of the base to the other model where they nearly agree: w = clip(t / |B - X|, 0, 1), w X + (1 - w) B."""

import torch
from torch import Tensor

from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="swap in what is nearly equal",
    base="required",
    models=(1, 1),
    shared={"t": Number(None, low=0.0)},
)


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    base, other = inputs.origin(), inputs.tensors[0]
    distance = (base - other).abs()
    share = torch.where(distance > 0, inputs.shared["t"] / distance.clamp_min(1e-38), 1.0).clamp(0.0, 1.0)
    return share * other + (1 - share) * base
