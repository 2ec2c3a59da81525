"""Weighted mean of many models on the sphere, by one step in the tangent space at their mean.

Works on task vectors when there is a base. The length is the weighted mean of the lengths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.merge import sphere
from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import CANCELLED, weighted_sum
from agent_forge.merge.method import Flag, Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="barycentric spherical mean of many models",
    base="optional",
    models=(2, None),
    each={"weight": Number(None)},
    shared={"normalize_weights": Flag(True), "eps": Number(1e-8, low=0.0)},
)


def check(each: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> str:
    """Return what is wrong when weights that are to be normalised cancel, else ""."""
    total = sum(parameters["weight"] for parameters in each)
    return "the weights sum to 0" if shared["normalize_weights"] and abs(total) < CANCELLED else ""


def survey(whole: Whole) -> list[float]:
    """Return the weight of each model (or task vector) in the spherical mean."""
    weights = [parameters["weight"] for parameters in whole.each]
    total = sum(weights) if whole.shared["normalize_weights"] else 1.0
    shares = [weight / total for weight in weights]
    return sphere.tangent_mean_weights(sphere.gram(whole, _vectors), shares, whole.shared["eps"])


def merge(inputs: Inputs) -> Array:
    """Return the spherical mean."""
    mixed = weighted_sum(_vectors(inputs), inputs.facts)
    return mixed if inputs.base is None else inputs.base + mixed


def _vectors(inputs: Inputs) -> list[Array]:
    return inputs.tensors if inputs.base is None else inputs.deltas()
