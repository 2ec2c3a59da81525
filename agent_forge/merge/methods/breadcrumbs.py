"""Drop both the largest and the smallest entries of each task vector, then add. Source: arXiv:2312.06795."""

from torch import Tensor

from agent_forge.merge import sparsify
from agent_forge.merge.consensus import DENSITY, WEIGHT, add_weighted, cancelled, shared_parameters
from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="task vectors without outliers and noise",
    base="required",
    each={"weight": WEIGHT, "density": DENSITY, "gamma": Number(0.01, low=0.0, high=1.0)},
    shared=shared_parameters(normalize=False),
)
check = cancelled


def trim(inputs: Inputs) -> list[Tensor]:
    """Return the trimmed task vectors."""
    return [
        sparsify.without_outliers(delta, parameters["density"], parameters["gamma"])
        for delta, parameters in zip(inputs.deltas(), inputs.each, strict=True)
    ]


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    return add_weighted(inputs.origin(), trim(inputs), inputs.column("weight"), inputs.shared)
