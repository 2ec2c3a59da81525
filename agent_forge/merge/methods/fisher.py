"""Mean of the models in which each entry counts by its Fisher information: sum w F X / sum w F.

Source: Matena and Raffel 2022, arXiv:2111.09832. Each model brings the diagonal of its Fisher
information, the mean squared gradient of the log-likelihood on data of its own, as
`fisher/*.safetensors` with the names and shapes of its weights (scripts/measure_fisher.py writes
it). `floor` is added to it, so that the result is the plain mean where no model has any
information.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number

METHOD = Method(
    summary="mean weighted by Fisher information",
    base="unused",
    each={"weight": Number(1.0, low=0.0)},
    shared={"floor": Number(1e-20, low=0.0, above=True)},
    importance=True,
)


def check(each: Sequence[Mapping[str, Any]], _shared: Mapping[str, Any]) -> str:
    """Return what is wrong when every weight is 0, else ""."""
    return (
        "" if sum(parameters["weight"] for parameters in each) else "all weights are 0; raise one"
    )


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    total = np.zeros(inputs.tensors[0].shape)
    divisor = np.zeros(inputs.tensors[0].shape)
    for tensor, importance, weight in zip(
        inputs.tensors, inputs.importance, inputs.column("weight"), strict=True
    ):
        share = weight * (importance.astype(np.float64) + inputs.shared["floor"])
        total += share * tensor
        divisor += share
    return np.asarray(total / divisor)
