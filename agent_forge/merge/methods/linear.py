"""Weighted mean of whole models: the sum of w_k X_k, divided by the sum of w_k when `normalize`.

Source: model soups, arXiv:2203.05482.
"""

from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import WEIGHT, cancelled, weighted_sum
from agent_forge.merge.method import Flag, Inputs, Method

METHOD = Method(
    summary="weighted mean of the models",
    base="unused",
    each={"weight": WEIGHT},
    shared={"normalize": Flag(True)},
)
check = cancelled


def merge(inputs: Inputs) -> Array:
    """Return the weighted sum or mean."""
    weights = inputs.column("weight")
    total = sum(weights) if inputs.shared["normalize"] else 1.0
    return weighted_sum(inputs.tensors, [weight / total for weight in weights])
