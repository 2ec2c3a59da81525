"""Scores with intervals: sums of (numerator, denominator) pairs, resampled by item.

The metric is sum(values) / sum(weights): for accuracy the weights are 1, for bits per byte the values are bits and the
weights bytes. The bootstrap draws whole items, so the interval is that of the ratio.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator

Array = NDArray[np.float64]
RESAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(slots=True, kw_only=True)
class Scores:
    """One task's result on one set of items. `interval` is the 95% bootstrap interval of `mean`."""

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

    @property
    def n(self) -> int:
        """Return the number of items."""
        return len(self.values)

    @property
    def above_chance(self) -> bool:
        """Say whether the whole interval is better than guessing."""
        low, high = self.interval
        return low > self.chance if self.higher_is_better else high < self.chance

    def as_metric(self) -> dict[str, Any]:
        """Return the form that manifests and reports hold."""
        return {
            "value": self.mean, "low": self.interval[0], "high": self.interval[1], "n": self.n,
            "metric": self.metric, "split": self.split, "items": self.items_hash,
        }  # fmt: skip

    def to_plain(self) -> dict[str, Any]:
        """Return every field as plain values, for `Workspace.remember`."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "interval": list(self.interval)}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> "Scores":
        """Return what `to_plain` wrote."""
        low, high = content["interval"]
        return cls(**{**content, "interval": (low, high)})


def split_hash(items: Sequence[Any]) -> str:
    """Return a short hash of items, so that a manifest says what was scored."""
    text = json.dumps(list(items), sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def resample(values: Array, weights: Array, draws: NDArray[np.int64]) -> Array:
    """Return the metric of each resample. values, weights: (n,); draws: (samples, n) item numbers -> (samples,)."""
    return np.asarray(values[draws].sum(1) / weights[draws].sum(1))


def draw_items(n: int, samples: int, seed: int, *names: str) -> NDArray[np.int64]:
    """Return (samples, n) item numbers drawn with replacement; the same arguments give the same draws."""
    if n < 1:
        raise DataError("nothing to resample: the task has no item in this split; use more items or more data")
    return numpy_generator(seed, "bootstrap", n, *names).integers(0, n, (samples, n))


def bootstrap_interval(
    values: Array, weights: Array, *, seed: int, samples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the percentile interval of sum(values) / sum(weights) over resampled items."""
    means = np.sort(resample(values, weights, draw_items(len(values), samples, seed)))
    tail = int(samples * (1 - confidence) / 2)
    return float(means[tail]), float(means[-1 - tail])


def paired_gain(
    base: Scores, other: Scores, *, samples: int, seed: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return (gain, lower bound) of `other` over `base` on the same items; positive is better.

    The bound is one-sided at `confidence`: under no difference it is positive at most 1 - confidence of the time.
    """
    require_pairs(base, other)
    sign = 1.0 if base.higher_is_better else -1.0
    draws = draw_items(base.n, samples, seed, base.task)
    b_values, b_weights = np.asarray(base.values), np.asarray(base.weights)
    o_values, o_weights = np.asarray(other.values), np.asarray(other.weights)
    gains = sign * (resample(o_values, o_weights, draws) - resample(b_values, b_weights, draws))
    return sign * (other.mean - base.mean), float(np.sort(gains)[int(samples * (1 - confidence))])


def require_pairs(parent: Scores, child: Scores) -> None:
    """Raise DataError unless both were scored by the same task on the same items."""
    ours, theirs = (parent.task, parent.version, parent.items_hash), (child.task, child.version, child.items_hash)
    if ours != theirs or parent.n != child.n:
        raise DataError(
            f"scores of {ours} with n={parent.n} and {theirs} with n={child.n} cannot be paired; "
            "score both models on the same split, item count, data and seed"
        )
