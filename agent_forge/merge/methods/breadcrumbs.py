"""Drop both the largest and the smallest entries of each task vector, then add. Source: arXiv:2312.06795."""

from collections.abc import Sequence

from agent_forge.merge import sparsify
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_weighted, cancelled, shared_parameters
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="task vectors without outliers and noise",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY, "gamma": Number(0.01, low=0.0, high=1.0)},
    shared=shared_parameters(normalize=False),
    narrow=True,
)
check = cancelled


def survey(whole: Whole) -> list[list[sparsify.Cut]]:
    """Return for each task vector the cut below what stays and, where any are dropped, the cut below the outliers."""
    counts = []
    for parameters in whole.each:
        kept = sparsify.kept_count(parameters["density"], whole.entries)
        top = min(int(parameters["gamma"] * whole.entries), whole.entries - kept)
        counts.append([kept + top, top] if top else [kept])
    return sparsify.largest(whole, sparsify.delta_magnitudes, counts)


def trim(inputs: Inputs) -> list[Array]:
    """Return the trimmed task vectors."""
    return [_trimmed(delta, cuts, inputs.start) for delta, cuts in zip(inputs.deltas(), inputs.facts, strict=True)]


def _trimmed(delta: Array, cuts: Sequence[sparsify.Cut], start: int) -> Array:
    magnitudes = sparsify.single_magnitude(delta)
    mask = cuts[0].mask(magnitudes, start)
    for outliers in cuts[1:]:
        mask &= ~outliers.mask(magnitudes, start)
    return sparsify.masked(delta, mask)


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_weighted(inputs.origin(), trim(inputs), inputs.column("weight"), inputs.shared)
