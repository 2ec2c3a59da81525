"""Take over only the changes that matter: |X - B| times the rows' KL divergence, above median + 1.5 IQR."""

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method
from agent_forge.merge.pieces import Whole

METHOD = Method(summary="take over the important changes only", base="required", models=(1, 1), rows=True)


def survey(whole: Whole) -> float:
    """Return the importance from which changes are taken over."""
    every = np.concatenate([piece.reshape(-1) for piece in whole.map(importance)])
    low, middle, high = (_quantile(every, share) for share in (0.25, 0.5, 0.75))
    return float(middle + 1.5 * (high - low))


def merge(inputs: Inputs) -> Array:
    """Return the base with the important entries replaced."""
    return np.where(importance(inputs) >= inputs.facts, inputs.tensors[0], inputs.origin())


def importance(inputs: Inputs) -> Array:
    """Return the importance of each entry, float32."""
    base, other = inputs.origin(), inputs.tensors[0]
    p, q = _log_softmax(other), _log_softmax(base)
    divergence = (np.exp(p) * (p - q)).sum(-1, keepdims=True)
    return (np.abs(other - base) * divergence).astype(np.float32)


def _log_softmax(rows: Array) -> Array:
    wide = rows.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide


def _quantile(values: Array, share: float) -> np.float32:
    """Return a quantile, interpolated linearly. Reorders the values."""
    place = share * (values.size - 1)
    below = int(place)
    above = min(below + 1, values.size - 1)
    values.partition((below, above))
    weight = np.float32(place - below)
    return np.float32(values[below] + weight * (values[above] - values[below]))
