"""Gate a child by what it retains of its parent, paired on the same items.

Retention is child/parent where higher is better, parent/child for bits per byte, and the parent's
perplexity over the child's for nats per token. A child is refused on a task when two things hold:
it is shown to be worse than the parent (upper bound below 1) and it is not shown to keep the limit
(lower bound below the limit). The first condition lets unchanged children pass with any number of
items, the second lets small losses pass. Only the parent's interval decides whether a task is gated
at all: where the parent is at chance there is nothing to lose, and the report says so.

The same rule, with separate limits, compares a child with the base of its chain, so that many small
losses cannot add up: a phase may spend only what is left of the chain's limit.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from agent_forge.config import GateConfig
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.evaluate.scores import Array, Scores, draw_items, require_pairs, resample
from agent_forge.evaluate.task import Task

CONFIDENCE = 0.95  # one-sided, for the bounds in reports
# One-sided, for showing a loss. All gated tasks share it, so that an unchanged child passes.
LOSS_CONFIDENCE = 0.99


@dataclass(slots=True, kw_only=True)
class Retention:
    """How much of the parent's score the child keeps; (low, high) are one-sided 95% bounds.

    ceiling: upper bound at LOSS_CONFIDENCE; below 1 the child is shown to be worse.
    at_chance: the parent is not above chance, so the task is not gated.
    """

    task: str
    ratio: float
    low: float
    high: float
    limit: float = 0.0
    gated: bool = False
    note: str = ""
    ceiling: float = math.inf
    at_chance: bool = False
    n: int = 0

    @property
    def refused(self) -> bool:
        """Return whether the child is shown to be worse and is not shown to keep the limit."""
        return self.gated and self.low < self.limit and self.ceiling < 1

    @property
    def certain(self) -> bool:
        """Return whether more items are not expected to change the verdict on this task."""
        return not self.gated or self.low >= self.limit or self.ceiling < self.limit

    def as_metric(self) -> dict[str, float | int]:
        """Return {"value", "low", "high", "n"} for a manifest."""
        return {"value": self.ratio, "low": self.low, "high": self.high, "n": self.n}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a model costs beside its scores; 0 where it is not known."""

    deployable_bytes: int = 0
    tokens_per_second: float = 0.0
    memory_bytes: int = 0


UNKNOWN_COST = Cost()


@dataclass(slots=True, kw_only=True)
class Verdict:
    """The gate's decision, with the reasons for a refusal in plain words.

    retentions: against the parent, by task.
    chain: against the base of the chain, by task.
    """

    passed: bool
    reasons: list[str]
    retentions: dict[str, Retention]
    chain: dict[str, Retention] = field(default_factory=dict)

    def open_tasks(self) -> list[str]:
        """Return the tasks whose verdict more items may change.

        None once one is certainly refused.
        """
        rows = [*self.retentions.values(), *self.chain.values()]
        if any(row.gated and row.ceiling < row.limit for row in rows):
            return []
        return sorted({row.task for row in rows if not row.certain})


def retention(
    task: Task | str,
    parent: Scores,
    child: Scores,
    samples: int,
    seed: int,
    *,
    confidence: float = CONFIDENCE,
    loss_confidence: float = LOSS_CONFIDENCE,
) -> Retention:
    """Return the child's retention with its paired-bootstrap bounds.

    The ratio 0/0, where both score nothing, counts as 1; a child whose score is not finite retains
    0. Raises DataError when the two were not scored on the same items.
    """
    require_pairs(parent, child)
    both = [*parent.sums(), *child.sums()]
    draws = draw_items(len(both[0]), samples, seed, parent.task)
    everything = np.arange(len(both[0]))[None, :]
    ratio = float(_ratios(both, everything, parent)[0])
    ratios = np.sort(_ratios(both, draws, parent))
    tail, loss_tail = int((1 - confidence) * samples), int((1 - loss_confidence) * samples)
    return Retention(
        task=task if isinstance(task, str) else task.name, ratio=ratio, low=float(ratios[tail]),
        high=float(ratios[-1 - tail]), ceiling=float(ratios[-1 - loss_tail]), n=parent.n,
    )  # fmt: skip


def retention_by_kind(
    parent: Scores, child: Scores, samples: int, seed: int
) -> dict[str, Retention]:
    """Return the child's retention per kind of item, in order of appearance; {} without kinds."""
    require_pairs(parent, child)
    retentions = {}
    for kind in dict.fromkeys(parent.kinds):
        places = [place for place, name in enumerate(parent.kinds) if name == kind]
        before, after = _items_at(parent, places), _items_at(child, places)
        retentions[kind] = retention(kind, before, after, samples, seed)
    return retentions


def _items_at(scores: Scores, places: list[int]) -> Scores:
    """Return the scores of some items, with the interval of all, which retention does not read."""
    values, weights = (
        [part[place] for place in places] for part in (scores.values, scores.weights)
    )
    clusters = [scores.clusters[place] for place in places] if scores.clusters else []
    return replace(
        scores,
        values=values,
        weights=weights,
        clusters=clusters,
        kinds=[],
        mean=sum(values) / sum(weights),
    )


def _ratios(both: list[Array], draws: np.ndarray, parent: Scores) -> Array:
    """Return the retention of each resample, (samples,); 0 where the child's score is not finite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        old, new = resample(both[0], both[1], draws), resample(both[2], both[3], draws)
        if parent.logarithmic:
            ratios = np.exp(old - new)
        else:
            top, bottom = (new, old) if parent.higher_is_better else (old, new)
            ratios = np.where((top == 0) & (bottom == 0), 1.0, top / bottom)
    return np.where(np.isfinite(new), ratios, 0.0)


def judge(
    gate: GateConfig,
    parent: Mapping[str, Scores],
    child: Mapping[str, Scores],
    *,
    base: Mapping[str, Scores] | None = None,
    parent_cost: Cost = UNKNOWN_COST,
    child_cost: Cost = UNKNOWN_COST,
    promises_smaller: bool = False,
    memory_slack: int = 0,
    seed: int = 0,
) -> Verdict:
    """Return the verdict on a child.

    parent: empty for a model that is made from nothing; then every score only has to be finite.
    base: scores of the base of the chain, for the limits of `gate.chain`.
    memory_slack: bytes by which two measurements of one model may differ.

    Tasks that were scored but are not in `gate.tasks` are reported and not gated. Raises
    ConfigError when a gated task was not scored.
    """
    for name in gate.tasks:
        if name not in child or (parent and name not in parent):
            raise ConfigError(
                f"gate.tasks names '{name}', which was not scored{did_you_mean(name, child)}"
            )
    tests = [(parent, gate.tasks), (base or {}, gate.chain)]
    gated = sum(_is_gated(name, scores, limits) for scores, limits in tests for name in scores)
    rows, chain = (
        {
            name: _judge_task(gate, limits, scores[name], child[name], max(gated, 1), seed)
            for name in scores
            if name in child
        }
        for scores, limits in tests
    )
    reasons = [
        f"{name} is {scores.mean}, not a finite number"
        for name, scores in child.items()
        if not math.isfinite(scores.mean)
    ]
    reasons += [_too_little(row, "the parent") for row in rows.values() if row.refused]
    reasons += [_too_little(row, "the chain's base") for row in chain.values() if row.refused]
    if promises_smaller and 0 < parent_cost.deployable_bytes < child_cost.deployable_bytes:
        reasons.append(
            f"deployable size grew from {parent_cost.deployable_bytes:,} to "
            f"{child_cost.deployable_bytes:,} bytes, though this phase promises a smaller model"
        )
    reasons += _too_costly(gate, parent_cost, child_cost, memory_slack)
    return Verdict(passed=not reasons, reasons=reasons, retentions=rows, chain=chain)


def _too_costly(gate: GateConfig, parent: Cost, child: Cost, memory_slack: int) -> list[str]:
    """Return in words which limit of the gate on speed and memory the child exceeds."""
    reasons = []
    if child.tokens_per_second < gate.speed_ratio * parent.tokens_per_second:
        reasons.append(
            f"speed fell from {parent.tokens_per_second:.0f} to {child.tokens_per_second:.0f} "
            f"tokens/s; the limit is {gate.speed_ratio:g} of the parent's"
        )
    allowed = parent.memory_bytes * gate.memory_ratio + memory_slack
    if parent.memory_bytes and allowed < child.memory_bytes:
        reasons.append(
            f"memory rose from {parent.memory_bytes / 1e6:.0f} to {child.memory_bytes / 1e6:.0f} "
            f"MB; the limit is {gate.memory_ratio:g} times the parent's"
        )
    return reasons


def _is_gated(name: str, scores: Mapping[str, Scores], limits: Mapping[str, float]) -> bool:
    return name in limits and scores[name].above_chance


def _judge_task(
    gate: GateConfig,
    limits: Mapping[str, float],
    parent: Scores,
    child: Scores,
    gated: int,
    seed: int,
) -> Retention:
    """Return the retention with its limit.

    gated: how many tests share the chance of a false alarm.
    """
    row = retention(
        parent.task, parent, child, gate.samples, seed,
        confidence=1 - (1 - CONFIDENCE) / gate.looks,
        loss_confidence=1 - (1 - LOSS_CONFIDENCE) / gated,
    )  # fmt: skip
    row.limit = limits.get(parent.task, 0.0)
    row.at_chance = not parent.above_chance
    row.gated = parent.task in limits and not row.at_chance
    if row.at_chance:
        row.note = (
            f"at chance: not gated, the parent is not above chance ({parent.mean:.3f} "
            f"against {parent.chance:.3f})"
        )
    elif row.gated and row.low < row.limit and not row.refused:
        row.note = f"no loss is shown, but n={row.n} shows no more than {row.low:.3f} kept"
    return row


def _too_little(row: Retention, of: str) -> str:
    return (
        f"{row.task} keeps {row.ratio:.3f} of {of}, at least {row.low:.3f} and at most "
        f"{row.ceiling:.3f}; the limit is {row.limit:.3f} (n={row.n})"
    )
