"""Add changes that only one model made whole, and average those that several made.

A change is |X - B| > epsilon.
"""

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number

EPSILON = Number(1e-5, low=0.0)
METHOD = Method(
    summary="unique changes whole, shared ones averaged",
    base="required",
    shared={"epsilon": EPSILON},
)


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    deltas = np.stack(inputs.deltas())
    changed = np.abs(deltas) > inputs.shared["epsilon"]
    average = (deltas * changed).sum(0) / np.maximum(changed.sum(0), 1).astype(deltas.dtype)
    return inputs.origin() + average
