"""Drop entries of each task vector at random and rescale, then add them. Source: DARE, arXiv:2311.03099.

Each model has its own mask, keyed by (seed, tensor, model). `rescale` divides by the density as in the paper; with
`rescale_l1` the L1 norm is restored instead, as mergekit 0.1.5 does.
"""

from torch import Tensor

from agent_forge.merge import sparsify
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_weighted, cancelled, shared_parameters
from agent_forge.merge.method import Flag, Inputs, Method

METHOD = Method(
    summary="random drop and rescale, then a weighted sum",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY},
    shared={**shared_parameters(normalize=False), "rescale": Flag(True), "rescale_l1": Flag(False)},
)
check = cancelled


def drop(inputs: Inputs) -> list[Tensor]:
    """Return the task vectors with dropped entries, rescaled as the recipe says."""
    rescale: sparsify.Rescale = "none"
    if inputs.shared["rescale"]:
        rescale = "l1" if inputs.shared["rescale_l1"] else "density"
    return [
        sparsify.at_random(delta, density, rescale, inputs.seed, inputs.name, key)
        for delta, density, key in zip(inputs.deltas(), inputs.column("density"), inputs.keys, strict=True)
    ]


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    return add_weighted(inputs.origin(), drop(inputs), inputs.column("weight"), inputs.shared)
