"""Riemannian (Karcher) mean of the models' directions, scaled to their mean length.

Iterates m <- exp_m(mean of log_m(u_k)) from the normalised mean until the step is below `tol` or `max_iter` is reached.
"""

import math

import torch
from torch import Tensor

from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="Riemannian mean of the directions",
    base="unused",
    shared={"max_iter": Number(10, low=1, high=10000, whole=True), "tol": Number(1e-5, low=0.0)},
)


def merge(inputs: Inputs) -> Tensor:
    """Return the mean. Tensors of length 0 count for the length only."""
    vectors = [tensor.flatten().double() for tensor in inputs.tensors]
    lengths = [float(vector.norm()) for vector in vectors]
    units = [vector / length for vector, length in zip(vectors, lengths, strict=True) if length > 0]
    shape = inputs.tensors[0].shape
    if not units:
        return torch.zeros_like(inputs.tensors[0])
    mean = torch.stack(units).mean(0)
    mean = mean / mean.norm() if float(mean.norm()) > 0 else units[0].clone()
    for _ in range(inputs.shared["max_iter"]):
        tangent = torch.zeros_like(mean)
        for unit in units:
            cosine = min(1.0, max(-1.0, float(torch.dot(mean, unit))))
            angle = math.acos(cosine)
            if angle > 1e-12:
                tangent += (angle / math.sin(angle)) * (unit - cosine * mean) if angle < math.pi else 0.0
        tangent /= len(units)
        step = float(tangent.norm())
        if step < inputs.shared["tol"]:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= mean.norm()
    return (mean * (sum(lengths) / len(lengths))).to(inputs.tensors[0].dtype).view(shape)
