"""Add weighted task vectors to the base: B + lambda * sum of w_k (X_k - B).

Source: arXiv:2212.04089.
"""

from agent_forge.merge.arrays import Array
from agent_forge.merge.consensus import WEIGHT, add_weighted, cancelled, shared_parameters
from agent_forge.merge.method import Inputs, Method

METHOD = Method(
    summary="base plus weighted task vectors",
    base="required",
    each={"weight": WEIGHT},
    shared=shared_parameters(normalize=False),
)
check = cancelled


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    return add_weighted(inputs.origin(), inputs.deltas(), inputs.column("weight"), inputs.shared)
