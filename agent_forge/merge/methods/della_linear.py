"""DARE with a keep-probability that rises with the magnitude rank inside each row: density ± epsilon, then a sum.

Source: DELLA, arXiv:2406.11617. `rescale` divides by each entry's probability; with `rescale_l1` the L1 norm is
restored.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from agent_forge.merge import sparsify
from agent_forge.merge.consensus import add_weighted, cancelled
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.methods import dare_linear

METHOD = Method(
    summary="drop by magnitude rank, then a weighted sum",
    base="required",
    each={**dare_linear.METHOD.each, "epsilon": Number(None, low=0.0, high=0.5)},
    shared=dare_linear.METHOD.shared,
)


def check(each: Sequence[Mapping[str, Any]], shared: Mapping[str, Any]) -> str:
    """Say when a keep-probability would leave (0, 1], or weights cancel."""
    for parameters in each:
        if parameters["density"] - parameters["epsilon"] <= 0 or parameters["density"] + parameters["epsilon"] > 1:
            return (
                f"density {parameters['density']:g} ± epsilon {parameters['epsilon']:g} must stay in (0, 1]; "
                "lower epsilon"
            )
    return cancelled(each, shared)


def drop(inputs: Inputs) -> list[Tensor]:
    """Return the task vectors with dropped entries, rescaled as the recipe says."""
    rescale: sparsify.Rescale = "none"
    if inputs.shared["rescale"]:
        rescale = "l1" if inputs.shared["rescale_l1"] else "density"
    return [
        sparsify.at_random_by_rank(
            delta, parameters["density"], parameters["epsilon"], rescale, inputs.seed, inputs.name, key
        )
        for delta, parameters, key in zip(inputs.deltas(), inputs.each, inputs.keys, strict=True)
    ]


def merge(inputs: Inputs) -> Tensor:
    """Return the merged tensor."""
    return add_weighted(inputs.origin(), drop(inputs), inputs.column("weight"), inputs.shared)
