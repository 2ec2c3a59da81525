"""Drop entries of each task vector at random and rescale, then add them.

Source: DARE, arXiv:2311.03099.

Each model has its own mask, keyed by (seed, tensor, model, place). `rescale` divides by the density
as in the paper; with `rescale_l1` the L1 norm is restored instead, as mergekit 0.1.5 does.
"""

from agent_forge.merge import sparsify
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_weighted, cancelled, shared_parameters
from agent_forge.merge.method import Flag, Inputs, Method
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="random drop and rescale, then a weighted sum",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY},
    shared={**shared_parameters(normalize=False), "rescale": Flag(True), "rescale_l1": Flag(False)},
    narrow=True,
)
check = cancelled


def survey(whole: Whole) -> list[float]:
    """Return by what the kept entries of each task vector are multiplied."""
    if not whole.shared["rescale"]:
        return [1.0] * len(whole.each)
    if whole.shared["rescale_l1"]:
        return sparsify.l1_factors(whole, thinned)
    return [1.0 / density for density in sparsify.column(whole, "density")]


def thinned(inputs: Inputs) -> list[Array]:
    """Return the task vectors with dropped entries, not rescaled."""
    deltas = []
    for delta, density, key in zip(
        inputs.deltas(), inputs.column("density"), inputs.keys, strict=True
    ):
        if density < 1:
            names = ("dare", inputs.name, key)
            delta *= sparsify.draws(inputs.seed, names, inputs.start, delta.size) < density
        deltas.append(delta)
    return deltas


def drop(inputs: Inputs) -> list[Array]:
    """Return the task vectors with dropped entries, rescaled as the recipe says."""
    deltas = thinned(inputs)
    for delta, factor in zip(deltas, inputs.facts, strict=True):
        delta *= factor
    return deltas


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_weighted(inputs.origin(), drop(inputs), inputs.column("weight"), inputs.shared)
