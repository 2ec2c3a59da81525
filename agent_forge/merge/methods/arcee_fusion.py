"""Take over only important changes: |X - B| times the rows' KL divergence, above median + 1.5 IQR.

Quartiles are the lower order statistics, sorted[int(q (n - 1))]. The divergence is a small
difference of large sums, so its rounding decides which of the entries at the threshold are taken
over. Its softmax is therefore computed as on the vector units that other tools run on, rounding for
rounding: with the exponential of SLEEF (Shibata and Petrogalli 2020, arXiv:2001.09258), with fused
multiply-adds, summed in sixteen lanes, and the divergence is summed in the order of PyTorch. Here
each step is taken in float64 and rounded to float32, so the result is the same on every processor.
The logarithm alone is the nearest float32, where other tools' is off by one unit in the last place
in 3.7% of the entries, as their vendor's library computes it.
"""

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="take over the important changes only", base="required", models=(1, 1), rows=True
)
FLOOR = np.float32(1e-8)  # added to every probability
# The softmax adds in 16 lanes, the divergence in 8, four columns of them and four levels.
LANES = 16
SUM_LANES, COLUMNS, LEVELS = 8, 4, 4
# exp(x) is 2^k · exp(r) with |r| ≤ ln 2 / 2. ln 2 is split into a short and a small part, so that k
# · LN2_HIGH is exact; the polynomial of exp(r) is in Horner's order, from r^7 down to r^2.
LN2_HIGH, LN2_LOW = np.float32(0.693145751953125), np.float32(1.428606765330187045e-06)
LOG2_E = np.float32(1.4426950408889634)
POLYNOMIAL = np.array(
    [1.9852762e-4, 1.3930436e-3, 8.3333608e-3, 4.1666485e-2, 1.6666667e-1, 0.5], np.float32
)  # fmt: skip
VANISHES = -104  # exp(x) of smaller x is 0 in float32


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
    base, other = (
        tensor.astype(np.float32, copy=False) for tensor in (inputs.origin(), inputs.tensors[0])
    )
    p, q = _softmax(other) + FLOOR, _softmax(base) + FLOOR
    terms = p * np.log((p / q).astype(np.float64)).astype(np.float32)
    return np.asarray(np.abs(other - base) * _cascade_sum(terms)[..., None])


def _softmax(rows: Array) -> Array:
    """Return the softmax of float32 rows: each exponential times the reciprocal of their sum."""
    exponentials = _exp(rows - rows.max(-1, keepdims=True))
    return np.asarray(exponentials * (np.float32(1.0) / _lane_sum(exponentials)))


def _exp(x: Array) -> Array:
    """Return exp(x) of float32 numbers up to 0, within one unit in the last place."""
    power = np.rint(x * LOG2_E)
    rest = _fused(power, -LN2_LOW, _fused(power, -LN2_HIGH, x))
    value = np.full_like(rest, POLYNOMIAL[0])
    for coefficient in POLYNOMIAL[1:]:
        value = _fused(value, rest, coefficient)
    value = np.float32(1.0) + _fused(rest * rest, value, rest)
    return np.where(
        x < VANISHES, np.float32(0.0), np.ldexp(value, np.nan_to_num(power).astype(np.int32))
    )


def _fused(a: Array, b: Array | np.float32, c: Array | np.float32) -> Array:
    """Return a · b + c as a fused multiply-add of float32 gives it.

    The product of two float32 numbers is exact in float64. The sum is rounded to float64 before
    float32, which changes the result only where it falls on a tie of float32: 1 sum in 2^29.
    """
    return np.asarray((a.astype(np.float64) * b + c).astype(np.float32))


def _lane_sum(rows: Array) -> Array:
    """Return the float32 sums of rows: entry i is added in lane i mod 16, then lanes are halved."""
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


def _cascade_sum(rows: Array) -> Array:
    """Return the float32 sums of rows, added in the order in which other tools add: shape (...).

    Entries are added in eight lanes and four columns of these, which are added over four levels:
    each takes what the one below has after sixteen steps or more. Rows of fewer than eight entries
    have one lane. The order is that of PyTorch's sum (aten/src/ATen/native/cpu/SumKernel.cpp), on
    processors with AVX2 and with AVX-512 alike.
    """
    width = rows.shape[-1]
    lanes = SUM_LANES if width >= SUM_LANES else 1
    steps = width // lanes
    whole = steps // COLUMNS
    stepped = np.ascontiguousarray(rows[..., : steps * lanes]).reshape(
        *rows.shape[:-1], steps, lanes
    )
    blocks = stepped[..., : whole * COLUMNS, :].reshape(*rows.shape[:-1], whole, COLUMNS, lanes)
    columns = _levels_sum(blocks)
    first = columns[..., 0, :]
    for step in range(whole * COLUMNS, steps):
        first = first + stepped[..., step, :]
    for column in range(1, COLUMNS):
        first = first + columns[..., column, :]
    total = np.zeros(rows.shape[:-1], np.float32)
    for place in range(steps * lanes, width):
        total = total + rows[..., place]
    for lane in range(lanes):
        total = total + first[..., lane]
    return total


def _levels_sum(blocks: Array) -> Array:
    """Return the sums over the blocks (..., blocks, columns, lanes), level by level."""
    count = blocks.shape[-3]
    power = max(4, (count - 1).bit_length() // LEVELS if count > 1 else 0)
    empty: Array = np.zeros(blocks.shape[:-3] + blocks.shape[-2:], np.float32)
    levels = [empty for _ in range(LEVELS)]
    for step in range(count):
        levels[0] = levels[0] + blocks[..., step, :, :]
        done = step + 1
        if done % (1 << power):
            continue
        for level in range(1, LEVELS):
            levels[level] = levels[level] + levels[level - 1]
            levels[level - 1] = empty
            if done & (((1 << power) - 1) << (level * power)):
                break
    total = levels[0]
    for higher in levels[1:]:
        total = total + higher
    return total


def _order_statistic(values: Array, share: float) -> np.float32:
    """Return the lower order statistic of a quantile. Reorders the values."""
    place = int(share * (values.size - 1))
    values.partition(place)
    return np.float32(values[place])
