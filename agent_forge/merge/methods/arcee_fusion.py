"""Take over only the changes that matter: |X - B| times the rows' KL divergence, above median + 1.5 IQR.

Quartiles are the lower order statistics, sorted[int(q (n - 1))]. The divergence is a small difference of large sums, so
its rounding decides which of the entries at the threshold are taken over. It is computed in float32 and its softmax is
summed in sixteen lanes, as by the vector units of the machines that other tools run on, so that ours are the same ones.
"""

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method
from agent_forge.merge.pieces import Whole

METHOD = Method(summary="take over the important changes only", base="required", models=(1, 1), rows=True)
FLOOR = np.float32(1e-8)  # added to every probability
LANES = 16


def survey(whole: Whole) -> float:
    """Return the importance from which changes are taken over."""
    every = np.concatenate([piece.reshape(-1) for piece in whole.map(importance, single=True)])
    low, middle, high = (_order_statistic(every, share) for share in (0.25, 0.5, 0.75))
    return float(middle + np.float32(1.5) * (high - low))


def merge(inputs: Inputs) -> Array:
    """Return the base with the important entries replaced."""
    return np.where(importance(inputs) >= inputs.facts, inputs.tensors[0], inputs.origin())


def importance(inputs: Inputs) -> Array:
    """Return the importance of each entry, float32."""
    base, other = (tensor.astype(np.float32, copy=False) for tensor in (inputs.origin(), inputs.tensors[0]))
    p, q = _softmax(other) + FLOOR, _softmax(base) + FLOOR
    terms = p * np.log((p / q).astype(np.float64)).astype(np.float32)
    divergence = terms.sum(-1, keepdims=True, dtype=np.float64).astype(np.float32)
    return np.asarray(np.abs(other - base) * divergence)


def _softmax(rows: Array) -> Array:
    """Return the softmax of float32 rows: each exponential correctly rounded, times the reciprocal of their sum."""
    exponentials = np.exp((rows - rows.max(-1, keepdims=True)).astype(np.float64)).astype(np.float32)
    return np.asarray(exponentials * (np.float32(1.0) / _lane_sum(exponentials)))


def _lane_sum(rows: Array) -> Array:
    """Return the float32 sums of rows: entry i is added in lane i modulo 16, then the lanes are added by halves."""
    width = rows.shape[-1]
    padded = np.zeros((*rows.shape[:-1], -(-width // LANES) * LANES), np.float32)
    padded[..., :width] = rows
    steps = padded.reshape(*rows.shape[:-1], -1, LANES)
    lanes = np.zeros_like(steps[..., 0, :])
    for step in range(steps.shape[-2]):
        lanes += steps[..., step, :]
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes


def _order_statistic(values: Array, share: float) -> np.float32:
    """Return the lower order statistic of a quantile. Reorders the values."""
    place = int(share * (values.size - 1))
    values.partition(place)
    return np.float32(values[place])
