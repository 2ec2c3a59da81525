"""Weighted mean of whole models (model soup, arXiv:2203.05482): sum of w_k X_k, divided by sum w_k when `normalize`."""

import torch
from torch import Tensor

from agent_forge.merge.consensus import WEIGHT, cancelled
from agent_forge.merge.method import Flag, Inputs, Method

METHOD = Method(
    summary="weighted mean of the models", base="unused", each={"weight": WEIGHT}, shared={"normalize": Flag(True)}
)
check = cancelled


def merge(inputs: Inputs) -> Tensor:
    """Return the weighted sum or mean."""
    weights = inputs.column("weight")
    total = sum(weights) if inputs.shared["normalize"] else 1.0
    result = torch.zeros_like(inputs.tensors[0])
    for tensor, weight in zip(inputs.tensors, weights, strict=True):
        result.add_(tensor, alpha=weight / total)
    return result
