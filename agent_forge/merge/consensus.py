"""Combine task vectors: a weighted sum of all, or of the ones that agree with the elected sign.

Sources: task arithmetic (arXiv:2212.04089), TIES (arXiv:2306.01708). Masks multiply rather than
select: on random masks that is several times faster, and every input is finite.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Flag, Number, Parameter

WEIGHT = Number(1.0)
DENSITY = Number(1.0, low=0.0, high=1.0, above=True)
LAMBDA = Number(1.0)
CANCELLED = 1e-8  # sums of weights below this count as 0


def shared_parameters(normalize: bool) -> dict[str, Parameter]:
    """Return what all methods that add task vectors share.

    `int8_mask` saves memory in other tools. Here no mask outlives its piece, so the flag is read
    and has no effect.
    """
    return {"normalize": Flag(normalize), "lambda": LAMBDA, "int8_mask": Flag(False)}


def cancelled(each: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> str:
    """Return what is wrong when weights that are to be normalised sum to 0."""
    total = sum(parameters["weight"] for parameters in each)
    if shared["normalize"] and abs(total) < CANCELLED:
        return "the weights sum to 0 and normalize is true; change a weight or set normalize: false"
    return ""


def add_weighted(
    base: Array, deltas: Sequence[Array], weights: Sequence[float], shared: Mapping[str, Any]
) -> Array:
    """Return base + lambda * sum(w * delta), divided by sum(w) when `normalize`.

    Overwrites the deltas.
    """
    total = weighted_sum(deltas, weights)
    total *= shared["lambda"] / (sum(weights) if shared["normalize"] else 1.0)
    total += base
    return total


def weighted_sum(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the sum of w * array, a new array."""
    total = arrays[0] * weights[0]
    for array, weight in zip(arrays[1:], weights[1:], strict=True):
        total += array * weight
    return total


def add_elected(
    base: Array, deltas: Sequence[Array], weights: Sequence[float], shared: Mapping[str, Any]
) -> Array:
    """Return base + lambda * (sum of the weighted deltas with the sign of their sum; zero counts as
    +).

    `normalize` divides each entry by the summed weights of the agreeing models. Overwrites the
    deltas.
    """
    sign = weighted_sum(deltas, weights)
    sign += 0.0  # turns -0 into 0, which counts as +
    np.copysign(sign.dtype.type(1.0), sign, out=sign)
    total, divisor = np.zeros_like(base), np.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        delta *= weight
        delta *= sign  # deltas that agree are positive now
        if shared["normalize"]:
            divisor += np.multiply(delta > 0, weight, dtype=base.dtype)
        total += np.maximum(delta, 0.0, out=delta)
    if shared["normalize"]:
        # Where no model agrees the sum is 0 too, so any divisor but 0 does.
        divisor += np.abs(divisor) < CANCELLED
        total /= divisor
    total *= sign
    total *= shared["lambda"]
    total += base
    return total
