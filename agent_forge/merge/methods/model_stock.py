"""Interpolate between the base and the mean of the models by the angle of the task vectors.

Source: arXiv:2403.19522.

t = N c / (1 + (N - 1) c), c the mean pairwise cosine; per tensor, or per row with `filter_wise`.
"""

from itertools import combinations

import numpy as np

from agent_forge.merge import sphere
from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Flag, Inputs, Method
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="geometry-weighted mean of models and base",
    base="required",
    models=(2, None),
    shared={"filter_wise": Flag(False)},
    rows=True,
    narrow=True,
)


def survey(whole: Whole) -> float | None:
    """Return the share of the models' mean for the whole tensor, None if each row has its own."""
    if whole.shared["filter_wise"] and len(whole.shape) > 1:
        return None
    products = sphere.gram(whole, Inputs.deltas)
    return float(_share([products[i, j] for i, j in _pairs(products)], list(np.diag(products))))


def merge(inputs: Inputs) -> Array:
    """Return the merged piece. A task vector of zeros has cosine 0 with every other."""
    base, deltas = inputs.origin(), inputs.deltas()
    share = inputs.facts
    if share is None:
        rows = [delta.reshape(len(delta), -1).astype(np.float64, copy=False) for delta in deltas]
        share = _share(
            [(rows[i] * rows[j]).sum(1) for i, j in _pairs(rows)],
            [(row * row).sum(1) for row in rows],
        )
        share = share.reshape(-1, *[1] * (base.ndim - 1)).astype(base.dtype)
    change = deltas[0]
    for delta in deltas[1:]:
        change += delta
    change *= share / len(deltas)
    change += base
    return change


def _pairs(things: object) -> list[tuple[int, int]]:
    return list(combinations(range(len(things)), 2))  # type: ignore[arg-type]


def _share(dots: list[Array], squares: list[Array]) -> Array:
    """Return t from the pairs' inner products and the squared lengths: numbers, or one per row."""
    cosines = []
    for (i, j), dot in zip(_pairs(squares), dots, strict=True):
        # The floor is far below any product of two lengths: it only gives 0/0 the value 0.
        cosines.append(dot / np.maximum(np.sqrt(squares[i] * squares[j]), 1e-300))
    count, c = len(squares), np.mean(cosines, axis=0)
    return np.asarray(count * c / (1 + (count - 1) * c))
