"""Slerp of two models, or of their task vectors when there is a base; t = w2 / (w1 + w2).

Flattened, or with `nuslerp_flatten: false` vector by vector: along the first dimension with `nuslerp_row_wise: true`
(mergekit's name for it), else along the last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from agent_forge.merge import sphere
from agent_forge.merge.method import Flag, Inputs, Method, Number

METHOD = Method(
    summary="weighted slerp of two models or two task vectors",
    base="optional",
    models=(2, 2),
    each={"weight": Number(None, low=0.0)},
    shared={"nuslerp_flatten": Flag(True), "nuslerp_row_wise": Flag(False)},
)


def check(each: Sequence[Mapping[str, Any]], _shared: Mapping[str, Any]) -> str:
    """Say when both weights are 0."""
    return "" if sum(parameters["weight"] for parameters in each) else "both weights are 0; raise one"


def merge(inputs: Inputs) -> Tensor:
    """Return the interpolated tensor."""
    first, second = inputs.tensors if inputs.base is None else inputs.deltas()
    a, b = inputs.column("weight")
    t = b / (a + b)
    if inputs.shared["nuslerp_flatten"] or first.dim() < 2:
        mixed = sphere.slerp(t, first.flatten(), second.flatten(), sphere.NEARLY_EQUAL).view_as(first)
    else:
        axis = 0 if inputs.shared["nuslerp_row_wise"] else -1
        mixed = sphere.slerp(t, first.movedim(axis, -1), second.movedim(axis, -1), sphere.NEARLY_EQUAL).movedim(
            -1, axis
        )
    return mixed if inputs.base is None else inputs.base + mixed
