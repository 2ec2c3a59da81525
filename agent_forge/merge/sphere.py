"""Walk on the sphere: dot products, norms and spherical interpolation along one dimension of tensors.

Sums run in float64, so that the angle of two nearly equal tensors is not lost.
"""

import torch
from torch import Tensor

# Beyond this cosine slerp is linear by definition; NEARLY_EQUAL is only where the sine leaves float64's precision.
COLINEAR = 0.9995
NEARLY_EQUAL = 1.0 - 1e-9


def norms(vectors: Tensor) -> Tensor:
    """Return the L2 norms along the last dimension, kept: (..., 1) float64."""
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=torch.float64)


def dots(a: Tensor, b: Tensor) -> Tensor:
    """Return the dot products along the last dimension, kept: (..., 1) float64."""
    return (a.double() * b.double()).sum(-1, keepdim=True)


def slerp(t: float, a: Tensor, b: Tensor, threshold: float = COLINEAR) -> Tensor:
    """Interpolate each vector of the last dimension from a (t = 0) to b (t = 1).

    The angle is that of the directions, the weights sin((1-t)θ)/sin θ and sin(tθ)/sin θ act on the vectors themselves.
    Vectors of length 0 and nearly (anti)parallel ones are interpolated linearly.
    """
    length = norms(a) * norms(b)
    cosine = (dots(a, b) / length.clamp_min(1e-300)).clamp(-1.0, 1.0)
    flat = (cosine.abs() > threshold) | (length == 0)
    angle = torch.acos(cosine)
    sine = torch.where(flat, 1.0, torch.sin(angle))
    of_a = torch.where(flat, 1.0 - t, torch.sin((1.0 - t) * angle) / sine)
    of_b = torch.where(flat, t, torch.sin(t * angle) / sine)
    return (a * of_a + b * of_b).to(a.dtype)
