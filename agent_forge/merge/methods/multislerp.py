"""Weighted mean of many models on the sphere, by one step in the tangent space at their mean direction.

Works on task vectors when there is a base. The length is the weighted mean of the lengths.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agent_forge.merge.method import Flag, Inputs, Method, Number

METHOD = Method(
    summary="barycentric spherical mean of many models",
    base="optional",
    models=(2, None),
    each={"weight": Number(None)},
    shared={"normalize_weights": Flag(True), "eps": Number(1e-8, low=0.0)},
)


def check(each: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> str:
    """Say when weights that are to be normalised cancel."""
    total = sum(parameters["weight"] for parameters in each)
    return "the weights sum to 0" if shared["normalize_weights"] and abs(total) < 1e-8 else ""


def merge(inputs: Inputs) -> Tensor:
    """Return the spherical mean; sums over a tensor run in float64."""
    chosen = inputs.tensors if inputs.base is None else inputs.deltas()
    weights = inputs.column("weight")
    total = sum(weights) if inputs.shared["normalize_weights"] else 1.0
    shares = [weight / total for weight in weights]
    vectors = [tensor.flatten().double() for tensor in chosen]
    lengths = [float(vector.norm()) for vector in vectors]
    tiny = inputs.shared["eps"]
    units = [vector / (length + tiny) for vector, length in zip(vectors, lengths, strict=True)]
    mean = sum(unit * share for unit, share in zip(units, shares, strict=True))
    assert isinstance(mean, Tensor)
    if float(mean.norm()) < tiny:
        result = sum(vector * share for vector, share in zip(vectors, shares, strict=True))
    else:
        mean = mean / mean.norm()
        tangent = torch.zeros_like(mean)
        for unit, share in zip(units, shares, strict=True):
            tangent += share * (unit - torch.dot(unit, mean) * mean)
        step = float(tangent.norm())
        if step > tiny:
            mean = mean * torch.cos(torch.tensor(step)).double() + tangent * (torch.sin(torch.tensor(step)) / step)
        result = mean * sum(length * share for length, share in zip(lengths, shares, strict=True))
    assert isinstance(result, Tensor)
    mixed = result.to(chosen[0].dtype).view_as(chosen[0])
    return mixed if inputs.base is None else inputs.base + mixed
