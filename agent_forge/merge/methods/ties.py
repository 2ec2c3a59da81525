"""Trim task vectors to their largest entries, elect a sign, and average those that agree.

Source: arXiv:2306.01708.

`rescale` restores each trimmed vector's L1 norm.
"""

from dataclasses import dataclass

from agent_forge.merge import sparsify
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_elected, cancelled, shared_parameters
from agent_forge.merge.method import Flag, Inputs, Method
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="trim, elect signs, merge the agreeing",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY},
    shared={**shared_parameters(normalize=True), "rescale": Flag(False)},
    narrow=True,
)
check = cancelled


@dataclass(frozen=True, slots=True)
class Trim:
    """Where each task vector is cut, and by what the rest is multiplied."""

    cuts: list[sparsify.Cut]
    factors: list[float]


def survey(whole: Whole) -> Trim:
    """Return the cuts; with `rescale` also what restores the L1 norms."""
    cuts = sparsify.top_cuts(whole, sparsify.column(whole, "density"))
    if not whole.shared["rescale"]:
        return Trim(cuts, [])
    return Trim(cuts, sparsify.l1_factors(whole, lambda inputs: trim(inputs, cuts)))


def trim(inputs: Inputs, cuts: list[sparsify.Cut]) -> list[Array]:
    """Return the trimmed task vectors."""
    return [
        delta if cut is sparsify.KEEP_ALL
        else sparsify.masked(delta, cut.mask(sparsify.single_magnitude(delta), inputs.start))
        for delta, cut in zip(inputs.deltas(), cuts, strict=True)
    ]  # fmt: skip


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    trimmed = trim(inputs, inputs.facts.cuts)
    for delta, factor in zip(trimmed, inputs.facts.factors, strict=False):
        delta *= factor
    return add_elected(inputs.origin(), trimmed, inputs.column("weight"), inputs.shared)
