"""Drop both the largest and the smallest entries of each task vector, then add.

Source: arXiv:2312.06795.

`rescale` restores each trimmed vector's L1 norm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from agent_forge.merge import sparsify
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_weighted, cancelled, shared_parameters
from agent_forge.merge.method import Flag, Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="task vectors without outliers and noise",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY, "gamma": Number(0.01, low=0.0, high=1.0)},
    shared={**shared_parameters(normalize=False), "rescale": Flag(False)},
    narrow=True,
)
check = cancelled


@dataclass(frozen=True, slots=True)
class Trim:
    """Where each task vector is cut: below what stays, and below the outliers if any are dropped.

    factors: by what the rest is multiplied.
    """

    cuts: list[list[sparsify.Cut]]
    factors: list[float]


def survey(whole: Whole) -> Trim:
    """Return the cuts; with `rescale` also what restores the L1 norms."""
    counts = []
    for parameters in whole.each:
        count = sparsify.kept_count(parameters["density"], whole.entries)
        top = min(int(parameters["gamma"] * whole.entries), whole.entries - count)
        counts.append([count + top, top] if top else [count])
    cuts = sparsify.largest(whole, sparsify.delta_magnitudes, counts)
    if not whole.shared["rescale"]:
        return Trim(cuts, [])
    return Trim(cuts, sparsify.l1_factors(whole, lambda inputs: _trimmed_all(inputs, cuts)))


def trim(inputs: Inputs) -> list[Array]:
    """Return the trimmed task vectors, rescaled as the recipe says."""
    trimmed = _trimmed_all(inputs, inputs.facts.cuts)
    for delta, factor in zip(trimmed, inputs.facts.factors, strict=False):
        delta *= factor
    return trimmed


def _trimmed_all(inputs: Inputs, cuts: Sequence[Sequence[sparsify.Cut]]) -> list[Array]:
    return [
        _trimmed(delta, own, inputs.start) for delta, own in zip(inputs.deltas(), cuts, strict=True)
    ]


def _trimmed(delta: Array, cuts: Sequence[sparsify.Cut], start: int) -> Array:
    magnitudes = sparsify.single_magnitude(delta)
    mask = cuts[0].mask(magnitudes, start)
    for outliers in cuts[1:]:
        mask &= ~outliers.mask(magnitudes, start)
    return sparsify.masked(delta, mask)


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_weighted(inputs.origin(), trim(inputs), inputs.column("weight"), inputs.shared)
