"""DARE with keep-probabilities, density ± epsilon, that rise with the magnitude's rank in its row.

Source: DELLA, arXiv:2406.11617. `rescale` divides by each entry's probability; with `rescale_l1`
the L1 norm is restored. Masks are keyed by (seed, tensor, model, place).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.merge import sparsify
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import add_weighted, cancelled
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.methods import dare_linear
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="drop by magnitude rank, then a weighted sum",
    base="required",
    each={**dare_linear.METHOD.each, "epsilon": Number(0.15, low=0.0, high=0.5)},
    shared=dare_linear.METHOD.shared,
    rows=True,
    narrow=True,
)


def check(each: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> str:
    """Return what is wrong when a keep-probability would leave (0, 1], or weights cancel.

    Density 1 drops nothing.
    """
    for parameters in each:
        density, epsilon = parameters["density"], parameters["epsilon"]
        if density < 1 and (density - epsilon <= 0 or density + epsilon > 1):
            return f"density {density:g} ± epsilon {epsilon:g} must stay in (0, 1]; lower epsilon"
    return cancelled(each, shared)


def survey(whole: Whole) -> list[float] | None:
    """Return what restores the L1 norm of each task vector, where the recipe asks for that."""
    if not (whole.shared["rescale"] and whole.shared["rescale_l1"]):
        return None
    return sparsify.l1_factors(whole, lambda inputs: _thinned(inputs, rescale=False))


def drop(inputs: Inputs) -> list[Array]:
    """Return the task vectors with dropped entries, rescaled as the recipe says."""
    deltas = _thinned(inputs, rescale=inputs.shared["rescale"] and not inputs.shared["rescale_l1"])
    for delta, factor in zip(deltas, inputs.facts or [], strict=False):
        delta *= factor
    return deltas


def _thinned(inputs: Inputs, *, rescale: bool) -> list[Array]:
    deltas = []
    for delta, parameters, key in zip(inputs.deltas(), inputs.each, inputs.keys, strict=True):
        if parameters["density"] == 1:
            deltas.append(delta)
            continue
        probability = sparsify.keep_probabilities(
            delta, parameters["density"], parameters["epsilon"]
        )
        names = ("della", inputs.name, key)
        delta *= (
            sparsify.draws(inputs.seed, names, inputs.start, delta.size).reshape(delta.shape)
            < probability
        )
        if rescale:
            # Entries with probability 0 are all dropped, so there is only 0 to divide.
            delta /= np.maximum(probability, np.finfo(np.float32).tiny)
        deltas.append(delta)
    return deltas


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_weighted(inputs.origin(), drop(inputs), inputs.column("weight"), inputs.shared)
