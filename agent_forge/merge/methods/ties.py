"""Trim task vectors to their largest entries, elect a sign, and average those that agree. Source: arXiv:2306.01708.

`rescale` restores each trimmed vector's L1 norm; `int8_mask` is accepted for recipes of other tools and changes
no number.
"""

from torch import Tensor

from agent_forge.merge import sparsify
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_elected, cancelled, shared_parameters
from agent_forge.merge.method import Flag, Inputs, Method

METHOD = Method(
    summary="trim, elect signs, merge the agreeing",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY},
    shared={**shared_parameters(normalize=True), "rescale": Flag(False), "int8_mask": Flag(False)},
)
check = cancelled


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    trimmed = []
    for delta, density in zip(inputs.deltas(), inputs.column("density"), strict=True):
        kept = sparsify.top_share(delta, density)
        trimmed.append(sparsify.restore_l1(kept, delta) if inputs.shared["rescale"] else kept)
    return add_elected(inputs.origin(), trimmed, inputs.column("weight"), inputs.shared)
