"""Geometry of whole tensors: inner products, spherical interpolation, means in the models' span.

Everything is found from the matrix of inner products (Gram matrix), which is summed in float64, run
by run and piece by piece. The result is a weighted sum of the models.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs
from agent_forge.merge.pieces import Whole

# Beyond this cosine slerp is linear by definition. NEARLY_EQUAL is only where the sine leaves
# float64's precision.
COLINEAR = 0.9995
NEARLY_EQUAL = 1.0 - 1e-9
RUN = 1024


def gram(whole: Whole, vectors: Callable[[Inputs], Sequence[Array]]) -> Array:
    """Return the inner products of the tensors that `vectors` returns per piece: (n, n) float64."""

    def products(inputs: Inputs) -> Array:
        flat = [vector.reshape(-1) for vector in vectors(inputs)]
        matrix = np.empty((len(flat), len(flat)))
        for i, left in enumerate(flat):
            for j, right in enumerate(flat[: i + 1]):
                matrix[i, j] = matrix[j, i] = _dot(left, right)
        return matrix

    return whole.total(products)


def _dot(left: Array, right: Array) -> float:
    """Return the inner product of two flat arrays: of runs in their dtype, summed in float64.

    BLAS would spread a long product over threads of its own, which would then wait for the cores
    that ours use.
    """
    whole = len(left) // RUN * RUN
    runs = np.vecdot(left[:whole].reshape(-1, RUN), right[:whole].reshape(-1, RUN))
    return float(runs.sum(dtype=np.float64)) + float(np.dot(left[whole:], right[whole:]))


def slerp_weights(t: float, cosine: Array, threshold: float) -> tuple[Array, Array]:
    """Return the weights sin((1-t)θ)/sin θ and sin(tθ)/sin θ; linear ones above the threshold.

    cosine: of the angle between the directions, any shape; NaN where one of them has length 0,
    which is interpolated linearly.
    """
    flat = ~(np.abs(cosine) <= threshold)
    # Both branches of np.where are computed. A cosine of 0 has a sine of 1, so the branch that is
    # dropped divides by no 0.
    angle = np.arccos(np.where(flat, 0.0, cosine))
    sine = np.sin(angle)
    return (
        np.where(flat, 1.0 - t, np.sin((1.0 - t) * angle) / sine),
        np.where(flat, t, np.sin(t * angle) / sine),
    )


def cosine_of(dot: Array, square_a: Array, square_b: Array) -> Array:
    """Return the cosine from inner products, NaN where a length is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return (dot / np.sqrt(square_a * square_b)).clip(-1.0, 1.0)


def karcher_weights(products: Array, max_iter: int, tol: float) -> list[float]:
    """Return the tensors' weights in the Riemannian mean of their directions, at their mean length.

    Iterates m <- exp_m(mean of log_m(u_k)) from the normalised mean; tensors of length 0 count for
    the length only.
    """
    lengths = np.sqrt(np.diag(products))
    used = np.flatnonzero(lengths > 0)
    weights = np.zeros(len(lengths))
    if not used.size:
        return weights.tolist()
    cosines = products[np.ix_(used, used)] / np.outer(lengths[used], lengths[used])
    mean = np.full(len(used), 1.0 / len(used))
    norm = _length(mean, cosines)
    # Directions that cancel have no mean; the iteration then starts at the first of them.
    mean = mean / norm if norm > 0 else np.eye(len(used))[0]
    for _ in range(max_iter):
        tangent = np.zeros(len(used))
        for k, cosine in enumerate((cosines @ mean).clip(-1.0, 1.0)):
            angle = math.acos(cosine)
            # log_m(u) = θ / sin θ · (u - cos θ m). At θ = 0 it vanishes; at π it has no direction.
            if 1e-12 < angle < math.pi:
                tangent += angle / math.sin(angle) * (np.eye(len(used))[k] - cosine * mean)
        tangent /= len(used)
        step = _length(tangent, cosines)
        if step < tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= _length(mean, cosines)  # rounding leaves the sphere a little in each step
    weights[used] = mean / lengths[used] * lengths.mean()
    return weights.tolist()


def tangent_mean_weights(products: Array, shares: Sequence[float], eps: float) -> list[float]:
    """Return the tensors' weights in their barycentre on the sphere, by one step in the tangent
    space.

    The tangent space is the one at the shares' mean direction; the length is the shares' mean of
    the lengths.
    """
    lengths = np.sqrt(np.diag(products))
    scale = 1.0 / (lengths + eps)
    cosines = products * np.outer(scale, scale)
    share = np.asarray(shares, np.float64)
    norm = _length(share, cosines)
    if norm < eps:
        return share.tolist()
    mean = share / norm
    along = cosines @ mean
    # Σ w (u - (u·m) m), as weights of the directions u.
    tangent = share - float(share @ along) * mean
    step = _length(tangent, cosines)
    if step > eps:
        mean = mean * math.cos(step) + tangent * (math.sin(step) / step)
    return (mean * scale * float(share @ lengths)).tolist()


def _length(weights: Array, products: Array) -> float:
    # Of vectors that cancel, rounding can leave a square just below 0.
    return math.sqrt(max(0.0, float(weights @ products @ weights)))
