"""RAM with unique changes enlarged by 1 + r * clip(rho, 0, alpha).

rho is the model's number of overlapping changes per unique change.
"""

import numpy as np

from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.methods.ram import EPSILON
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="RAM with enlarged unique changes",
    base="required",
    shared={"epsilon": EPSILON, "r": Number(0.1, low=0.0), "alpha": Number(0.2, low=0.0)},
)


def survey(whole: Whole) -> list[float]:
    """Return by what each model's unique changes are multiplied."""

    def tally(inputs: Inputs) -> Array:
        _, changed, count = _changes(inputs)
        alone, shared = count == 1, count > 1
        return np.array([[int((m & alone).sum()), int((m & shared).sum())] for m in changed])

    factors = []
    for unique, overlapping in whole.total(tally):
        ratio = overlapping / unique if unique else 0.0
        factors.append(1 + whole.shared["r"] * float(min(ratio, whole.shared["alpha"])))
    return factors


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    deltas, changed, count = _changes(inputs)
    shared = (deltas * (changed & (count > 1))).sum(0) / np.maximum(count, 1).astype(deltas.dtype)
    result: Array = inputs.origin() + shared
    for delta, mask, factor in zip(deltas, changed, inputs.facts, strict=True):
        result += delta * (mask & (count == 1)) * factor
    return result


def _changes(inputs: Inputs) -> tuple[Array, Array, Array]:
    """Return the task vectors, which entries each changed, and how many models changed each."""
    deltas = np.stack(inputs.deltas())
    changed = np.abs(deltas) > inputs.shared["epsilon"]
    return deltas, changed, changed.sum(0)
