"""Pull entries of the base to the other model where they nearly agree.

The result is w X + (1 - w) B with w = clip(t / |B - X|, 0, 1).
"""

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="swap in what is nearly equal",
    base="required",
    models=(1, 1),
    shared={"t": Number(None, low=0.0)},
)


def merge(inputs: Inputs) -> Array:
    """Return the merged piece; where both agree exactly it is their value."""
    base, other = inputs.origin(), inputs.tensors[0]
    distance = np.abs(base - other)
    # 1e-38 is near float32's smallest normal number: equal entries get a share of 1 for any t > 0.
    share = np.minimum(inputs.shared["t"] / np.maximum(distance, 1e-38), 1.0)
    return share * other + (1 - share) * base
