"""Slerp of two models, or of their task vectors when there is a base; t = w2 / (w1 + w2).

Flattened, or with `nuslerp_flatten: false` vector by vector: along the first dimension with
`nuslerp_row_wise: true` (mergekit's name for it), else along the last.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent_forge.merge import sphere
from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Flag, Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="weighted slerp of two models or two task vectors",
    base="optional",
    models=(2, 2),
    each={"weight": Number(None, low=0.0)},
    shared={"nuslerp_flatten": Flag(True), "nuslerp_row_wise": Flag(False)},
    rows=True,
)


def check(each: Sequence[Mapping[str, Any]], _shared: Mapping[str, Any]) -> str:
    """Return what is wrong when both weights are 0, else ""."""
    return (
        "" if sum(parameters["weight"] for parameters in each) else "both weights are 0; raise one"
    )


def survey(whole: Whole) -> Array | None:
    """Return the cosine of the whole tensors, or of each vector along the first dimension.

    None for vectors along the last dimension, which a piece holds whole.
    """
    flatten = whole.shared["nuslerp_flatten"] or len(whole.shape) < 2
    if not flatten and not whole.shared["nuslerp_row_wise"]:
        return None

    def products(inputs: Inputs) -> Array:
        a, b = (vector.astype(np.float64, copy=False) for vector in _pair(inputs))
        return np.stack([(x * y).sum(None if flatten else 0) for x, y in ((a, b), (a, a), (b, b))])

    return sphere.cosine_of(*whole.total(products))


def merge(inputs: Inputs) -> Array:
    """Return the interpolated piece."""
    first, second = _pair(inputs)
    w1, w2 = inputs.column("weight")
    cosine = inputs.facts
    if cosine is None:
        a, b = first.astype(np.float64, copy=False), second.astype(np.float64, copy=False)
        cosine = sphere.cosine_of(
            *((x * y).sum(-1, keepdims=True) for x, y in ((a, b), (a, a), (b, b)))
        )
    of_first, of_second = sphere.slerp_weights(w2 / (w1 + w2), cosine, sphere.NEARLY_EQUAL)
    mixed = first * of_first + second * of_second
    return mixed if inputs.base is None else inputs.base + mixed


def _pair(inputs: Inputs) -> list[Array]:
    return inputs.tensors if inputs.base is None else inputs.deltas()
