"""Non-dominated sorting, crowding distance and hypervolume; every objective is to be maximised.

Source: Deb et al. 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Points = Sequence[Sequence[float]]


def fronts(points: Points) -> list[list[int]]:
    """Return the indices of `points` by front.

    The first front holds the points that no other dominates; the next, what is such a front once
    the first is gone; and so on.
    """
    values = np.asarray(points, np.float64).reshape(len(points), -1)
    # better[i, j]: point i dominates j, at least as good in all objectives and better in one.
    one, other = values[:, None], values[None]
    better = (one >= other).all(-1) & (one > other).any(-1)
    losses = np.asarray(better).sum(0)  # how many points dominate each one
    ordered: list[list[int]] = []
    left = np.ones(len(values), bool)
    while left.any():
        front = np.flatnonzero(left & (losses == 0))
        ordered.append([int(i) for i in front])
        left[front] = False
        # What a removed front dominated no longer counts against the rest.
        losses = losses - np.asarray(better)[front].sum(0)
    return ordered


def crowding(points: Points) -> NDArray[np.float64]:
    """Return each point's crowding distance: the mean side of the box that its neighbours span.

    It is infinite at the ends. Sides are shares of each objective's range; an objective that does
    not vary does not count. A point equal to another in everything adds nothing to the front, and
    has 0.
    """
    values = np.asarray(points, np.float64).reshape(len(points), -1)
    # Duplicates would be neighbours at distance 0 and crowd each other out together.
    distinct, first = np.unique(values, axis=0, return_index=True)
    gaps = np.zeros(len(distinct))
    for column in distinct.T:
        span = column.max() - column.min()
        if span == 0:
            continue
        order = np.argsort(column, kind="stable")
        # The ends of each objective always survive, so that the front keeps its extent.
        gaps[order[[0, -1]]] = np.inf
        sides = (column[order[2:]] - column[order[:-2]]) / span
        gaps[order[1:-1]] += sides / len(distinct.T)
    if len(distinct) == 1:
        gaps[:] = np.inf
    distances = np.zeros(len(values))
    distances[first] = gaps
    return distances


def hypervolume(points: Points, reference: Sequence[float]) -> float:
    """Return the volume that `points` dominate above `reference` (exact, by slicing along the last
    objective).
    """
    low = np.asarray(reference, np.float64)
    values = np.asarray(points, np.float64).reshape(-1, len(low))
    values = values[(values > low).all(1)]
    if not len(values):
        return 0.0
    if values.shape[1] == 1:
        return float(values.max() - low[0])
    # Between two neighbouring levels of the last objective the dominated region is a prism. Its
    # base is what the points at or above the upper level dominate in the other objectives.
    levels = np.unique(values[:, -1])[::-1]
    # The lowest prism reaches down to the reference.
    floors = [*levels[1:], low[-1]]
    return float(
        sum(
            (level - floor)
            * hypervolume(values[values[:, -1] >= level][:, :-1].tolist(), low[:-1].tolist())
            for level, floor in zip(levels, floors, strict=True)
        )
    )
