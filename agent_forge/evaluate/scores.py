"""Scores with intervals: sums of (numerator, denominator) pairs, resampled by cluster.

The metric is sum(values) / sum(weights): for accuracy the weights are 1, for bits per byte the
values are bits and the weights bytes. Items that depend on each other (pieces of one document, one
sum asked in two ways) are a cluster; the bootstrap draws whole clusters, so that more pieces of one
document do not narrow the interval. Source: Field & Welsh 2007, "Bootstrapping clustered data".
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator, seed_for

Array = NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95


def of_weight_one(values: Sequence[float]) -> Array:
    """Return (n, 2), the form of a task's score: the value of each item, and weight 1."""
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)


@dataclass(slots=True, kw_only=True)
class Scores:
    """One task's result on one set of items.

    interval: the 95% bootstrap interval of `mean`.
    clusters: the cluster of each item, numbered from 0; empty where each item is its own cluster.
    kinds: the kind of each item, where a task mixes several; empty where it has only one.
    logarithmic: `mean` is in nats, see Task.
    """

    task: str
    version: int
    metric: str
    higher_is_better: bool
    chance: float
    split: str
    items_hash: str
    mean: float
    interval: tuple[float, float]
    values: list[float]
    weights: list[float]
    clusters: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    logarithmic: bool = False

    @property
    def n(self) -> int:
        """Return the number of items."""
        return len(self.values)

    def sums(self) -> tuple[Array, Array]:
        """Return values and weights per cluster, (clusters,) each, for a bootstrap to draw from."""
        return cluster_sums(self.values, self.weights, self.clusters)

    def by_kind(self) -> dict[str, dict[str, Any]]:
        """Return {"value", "low", "high", "n"} per kind of item; {} where there is one kind."""
        names = list(dict.fromkeys(self.kinds))
        return {name: self._kind(name) for name in names} if len(names) > 1 else {}

    def _kind(self, name: str) -> dict[str, Any]:
        places = [place for place, kind in enumerate(self.kinds) if kind == name]
        values, weights = (
            np.asarray(part, np.float64)[places] for part in (self.values, self.weights)
        )
        clusters = [self.clusters[place] for place in places] if self.clusters else []
        low, high = bootstrap_interval(
            # A seed of its own per kind, so that a kind has the same interval whatever else is
            # scored.
            values,
            weights,
            clusters=clusters,
            seed=seed_for(0, "kinds", self.task, name),
        )
        return {
            "value": float(values.sum() / weights.sum()),
            "low": low,
            "high": high,
            "n": len(places),
        }

    @property
    def above_chance(self) -> bool:
        """Return whether the whole interval is better than guessing."""
        low, high = self.interval
        return low > self.chance if self.higher_is_better else high < self.chance

    def as_metric(self) -> dict[str, Any]:
        """Return the form that manifests and reports hold.

        Chance is None for a loss, because guessing has no finite loss.
        """
        chance = self.chance if math.isfinite(self.chance) else None
        metric: dict[str, Any] = {
            "value": self.mean, "low": self.interval[0], "high": self.interval[1], "n": self.n,
            "clusters": len(set(self.clusters)) or self.n, "chance": chance,
            "at_chance": not self.above_chance, "metric": self.metric, "split": self.split,
            "items": self.items_hash,
        }  # fmt: skip
        kinds = self.by_kind()
        return {**metric, "kinds": kinds} if kinds else metric

    def to_plain(self) -> dict[str, Any]:
        """Return every field as plain values, which `Workspace.remember` can keep."""
        return {
            **{name: getattr(self, name) for name in self.__slots__},
            "interval": list(self.interval),
        }

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> "Scores":
        """Return the scores that `to_plain` wrote."""
        low, high = content["interval"]
        return cls(**{**content, "interval": (low, high)})


def split_hash(items: Sequence[Any]) -> str:
    """Return a short hash of items, so that a manifest says what was scored."""
    text = json.dumps(list(items), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cluster_numbers(names: Sequence[str]) -> list[int]:
    """Return the number of each item's cluster, counted from 0 in order of appearance.

    names: (n,) names of clusters.
    """
    known: dict[str, int] = {}
    return [known.setdefault(name, len(known)) for name in names]


def cluster_sums(values: ArrayLike, weights: ArrayLike, clusters: ArrayLike) -> tuple[Array, Array]:
    """Return values and weights summed over each cluster, (clusters,) each.

    values, weights: (n,).
    clusters: (n,) numbers from 0 without a gap; or empty, and then every item is a cluster.
    """
    items: tuple[Array, Array] = (np.asarray(values, np.float64), np.asarray(weights, np.float64))
    names = np.asarray(clusters)
    if not names.size:
        return items
    _, numbers = np.unique(names, return_inverse=True)
    return np.bincount(numbers, items[0]).astype(np.float64), np.bincount(numbers, items[1]).astype(
        np.float64
    )


def resample(values: Array, weights: Array, draws: NDArray[np.int64]) -> Array:
    """Return the metric of each resample, (samples,).

    values, weights: (n,).
    draws: (samples, n) numbers of items.
    """
    return np.asarray(values[draws].sum(1) / weights[draws].sum(1))


def draw_items(n: int, samples: int, seed: int, *names: str) -> NDArray[np.int64]:
    """Return (samples, n) item numbers drawn with replacement.

    The same arguments give the same draws.
    """
    return draw_from(numpy_generator(seed, "bootstrap", n, *names), n, samples)


def draw_from(generator: np.random.Generator, n: int, samples: int) -> NDArray[np.int64]:
    """Return (samples, n) item numbers drawn with replacement, of a stream that the caller goes on
    with.

    Raises DataError where there is nothing to draw from.
    """
    if n < 1:
        raise DataError(
            "nothing to resample: the task has no item in this split; use more items or more data"
        )
    return generator.integers(0, n, (samples, n))


def bootstrap_interval(
    values: Array,
    weights: Array,
    *,
    seed: int,
    samples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    clusters: ArrayLike = (),
) -> tuple[float, float]:
    """Return the percentile interval of sum(values) / sum(weights) over resampled clusters.

    clusters: (n,) numbers, or empty to resample the items themselves.
    """
    sums = cluster_sums(values, weights, clusters)
    means = np.sort(resample(*sums, draw_items(len(sums[0]), samples, seed)))
    tail = int(samples * (1 - confidence) / 2)
    return float(means[tail]), float(means[-1 - tail])


def paired_gain(
    base: Scores, other: Scores, *, samples: int, seed: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return (gain, lower bound) of `other` over `base` on the same items; positive is better.

    Whole clusters are resampled. The bound is one-sided: without a difference between the two it is
    positive with a probability of at most 1 - confidence.
    """
    require_pairs(base, other)
    sign = 1.0 if base.higher_is_better else -1.0
    before, after = base.sums(), other.sums()
    draws = draw_items(len(before[0]), samples, seed, base.task)
    gains = sign * (resample(*after, draws) - resample(*before, draws))
    return sign * (other.mean - base.mean), float(np.sort(gains)[int(samples * (1 - confidence))])


def holm(chances: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's step-down method.

    A claim is made where the corrected value is at most the level; then any false claim at all is
    made with at most that probability, whatever the tests share. Source: Holm 1979.
    """
    corrected, largest = [1.0] * len(chances), 0.0
    order = sorted(range(len(chances)), key=chances.__getitem__)
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(chances) - rank) * chances[place]))
        corrected[place] = largest
    return corrected


def require_pairs(parent: Scores, child: Scores) -> None:
    """Raise DataError unless both were scored by the same task on the same items."""
    ours, theirs = (
        (parent.task, parent.version, parent.items_hash),
        (child.task, child.version, child.items_hash),
    )
    if ours != theirs or parent.n != child.n or parent.clusters != child.clusters:
        raise DataError(
            f"scores of {ours} with n={parent.n} and {theirs} with n={child.n} cannot be paired; "
            "score both models on the same split, item count, data and seed"
        )
