"""Select, calculate, erase: keep entries of high variance, weigh models by energy, elect signs.

Source: arXiv:2408.07990.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent_forge.merge import sparsify
from agent_forge.merge.arrays import Array
from agent_forge.merge.method import Inputs, Method, Number
from agent_forge.merge.pieces import Whole

METHOD = Method(
    summary="variance selection, energy weights, sign election",
    base="required",
    shared={"select_topk": Number(1.0, low=0.0, high=1.0, above=True)},
    narrow=True,
)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which entries take part (None: all), and the weight of each model by its energy there."""

    cut: sparsify.Cut | None
    weights: list[float]


def survey(whole: Whole) -> Selection:
    """Return the cut by variance and the energy weights."""
    cut = _variance_cut(whole)

    def energies(inputs: Inputs) -> Array:
        chosen = _selected(inputs, cut)
        return np.array([np.square(delta, dtype=np.float64).sum() for delta in chosen])

    energy = whole.total(energies)
    total = energy.sum()
    share = energy / total if total > 0 else np.full(len(energy), 1 / len(energy))
    return Selection(cut, share.tolist())


def _variance_cut(whole: Whole) -> sparsify.Cut | None:
    share = whole.shared["select_topk"]
    if share >= 1 or len(whole.tensors) < 2:
        return None
    # The share is one of the entries that vary at all.
    varying = sum(
        whole.map(lambda inputs: int(np.count_nonzero(_spread(inputs.deltas()))), single=True)
    )
    count = max(1, int(share * varying))
    return sparsify.largest(whole, lambda inputs: [_spread(inputs.deltas())], [[count]])[0][0]


def _spread(deltas: Sequence[Array]) -> Array:
    """Return the variance of each entry over the models, float32."""
    return np.stack([delta.astype(np.float32, copy=False) for delta in deltas]).var(0)


def _selected(inputs: Inputs, cut: sparsify.Cut | None) -> list[Array]:
    deltas = inputs.deltas()
    if cut is None:
        return deltas
    mask = cut.mask(_spread(deltas), inputs.start)
    return [sparsify.masked(delta, mask) for delta in deltas]


def merge(inputs: Inputs) -> Array:
    """Return the merged piece."""
    deltas = _selected(inputs, inputs.facts.cut)
    # A sum of 0 counts as +, as in TIES. The energy weights play no part in the election.
    positive = np.sum(deltas, axis=0) >= 0
    result, divisor = np.zeros_like(deltas[0]), np.zeros_like(deltas[0])
    for delta, weight in zip(deltas, inputs.facts.weights, strict=True):
        agrees = ((delta > 0) & positive) | ((delta < 0) & ~positive)
        result += delta * agrees * weight
        divisor += agrees * weight
    # Without an agreeing model there is nothing to divide: the base's entry stays.
    return inputs.origin() + result / np.where(divisor < 1e-12, 1.0, divisor)
