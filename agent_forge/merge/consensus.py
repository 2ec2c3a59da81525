"""Combine task vectors: a weighted sum, or a weighted sum of those that agree with the elected sign.

Sources: task arithmetic (arXiv:2212.04089), TIES (arXiv:2306.01708).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from agent_forge.merge.method import Flag, Number, Parameter

WEIGHT = Number(1.0)
DENSITY = Number(1.0, low=0.0, high=1.0, above=True)
LAMBDA = Number(1.0)


def shared_parameters(normalize: bool) -> dict[str, Parameter]:
    """Return what all methods that add task vectors share."""
    return {"normalize": Flag(normalize), "lambda": LAMBDA}


def cancelled(each: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> str:
    """Return what is wrong when weights that are to be normalised sum to 0."""
    total = sum(parameters["weight"] for parameters in each)
    if shared["normalize"] and abs(total) < 1e-8:
        return "the weights sum to 0 and normalize is true; change a weight or set normalize: false"
    return ""


def add_weighted(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], shared: Mapping[str, Any]) -> Tensor:
    """Return base + lambda * sum(w * delta), divided by sum(w) when `normalize`."""
    total = torch.zeros_like(base)
    for delta, weight in zip(deltas, weights, strict=True):
        total.add_(delta, alpha=weight)
    factor = shared["lambda"] / (sum(weights) if shared["normalize"] else 1.0)
    return base + total.mul_(factor)


def add_elected(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], shared: Mapping[str, Any]) -> Tensor:
    """Return base + lambda * (sum of the weighted deltas whose sign is that of their sum; zero counts as +).

    `normalize` divides each entry by the summed weights of the agreeing models.
    """
    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    positive = torch.stack(weighted).sum(0) >= 0
    total, divisor = torch.zeros_like(base), torch.zeros_like(base)
    for delta, weight in zip(weighted, weights, strict=True):
        agrees = torch.where(positive, delta > 0, delta < 0)
        total += torch.where(agrees, delta, 0.0)
        divisor += agrees * weight
    if shared["normalize"]:
        total = total / torch.where(divisor.abs() < 1e-8, 1.0, divisor)
    return base + total.mul_(shared["lambda"])
