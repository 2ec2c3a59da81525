"""Gate a child by what it retains of its parent, paired on the same items.

Retention is child/parent where higher is better and parent/child for bits per byte. The child passes when the lower
bound of every gated task is at least the limit. A task on which the parent itself guesses is reported, not gated.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from agent_forge.config import GateConfig
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.evaluate.scores import Array, Scores, draw_items, require_pairs, resample
from agent_forge.evaluate.task import Task

CONFIDENCE = 0.95  # one-sided: the decision looks at the lower bound only


@dataclass(slots=True, kw_only=True)
class Retention:
    """How much of the parent's score the child keeps; (low, high) are one-sided 95% bounds."""

    task: str
    ratio: float
    low: float
    high: float
    limit: float = 0.0
    gated: bool = False
    note: str = ""


@dataclass(slots=True, kw_only=True)
class Verdict:
    """The gate's decision. `reasons` says in plain words why a child was refused (empty when it passed)."""

    passed: bool
    reasons: list[str]
    retentions: dict[str, Retention]


def retention(task: Task | str, parent: Scores, child: Scores, samples: int, seed: int) -> Retention:
    """Return the child's retention with its paired-bootstrap bounds.

    A ratio 0/0 (both score nothing) counts as 1; a child whose score is not finite retains 0. Raises DataError when
    the two were not scored on the same items.
    """
    require_pairs(parent, child)
    both = [*parent.sums(), *child.sums()]
    draws = draw_items(len(both[0]), samples, seed, parent.task)
    everything = np.arange(len(both[0]))[None, :]
    ratio = float(_ratios(both, everything, parent.higher_is_better)[0])
    ratios = np.sort(_ratios(both, draws, parent.higher_is_better))
    tail = int((1 - CONFIDENCE) * samples)
    name = task if isinstance(task, str) else task.name
    return Retention(task=name, ratio=ratio, low=float(ratios[tail]), high=float(ratios[-1 - tail]))


def _ratios(both: list[Array], draws: np.ndarray, higher_is_better: bool) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        old, new = resample(both[0], both[1], draws), resample(both[2], both[3], draws)
        top, bottom = (new, old) if higher_is_better else (old, new)
        ratios = np.where((top == 0) & (bottom == 0), 1.0, top / bottom)
    return np.where(np.isfinite(new), ratios, 0.0)


def judge(
    gate: GateConfig,
    parent: Mapping[str, Scores],
    child: Mapping[str, Scores],
    *,
    parent_bytes: int = 0,
    child_bytes: int = 0,
    promises_smaller: bool = False,
    parent_speed: float = 0.0,
    child_speed: float = 0.0,
    parent_memory: int = 0,
    child_memory: int = 0,
    seed: int = 0,
) -> Verdict:
    """Return the verdict on a child; speed in tokens per second, memory in bytes, 0 where it is not known.

    An empty `parent` (a model made from nothing) asks only that every score is finite. Tasks that were scored
    but are not in `gate.tasks` are reported. Raises ConfigError when a gated task was not scored.
    """
    rows: dict[str, Retention] = {}
    reasons = [
        f"{name} is {row.mean}, not a finite number" for name, row in child.items() if not math.isfinite(row.mean)
    ]
    for name in gate.tasks:
        if name not in child or (parent and name not in parent):
            raise ConfigError(f"gate.tasks names '{name}', which was not scored{did_you_mean(name, child)}")
    for name in parent:
        if name in child:
            rows[name] = _judge_task(gate, name, parent[name], child[name], seed)
            if rows[name].gated and rows[name].low < rows[name].limit:
                reasons.append(_too_little(rows[name], child[name].n))
    if promises_smaller and 0 < parent_bytes < child_bytes:
        reasons.append(
            f"deployable size grew from {parent_bytes:,} to {child_bytes:,} bytes, "
            "though this phase promises a smaller model"
        )
    if child_speed < gate.speed_ratio * parent_speed:
        reasons.append(
            f"speed fell from {parent_speed:.0f} to {child_speed:.0f} tokens/s; "
            f"the limit is {gate.speed_ratio:g} of the parent's"
        )
    if 0 < parent_memory * gate.memory_ratio < child_memory:
        reasons.append(
            f"peak memory rose from {parent_memory / 1e6:.0f} to {child_memory / 1e6:.0f} MB; "
            f"the limit is {gate.memory_ratio:g} times the parent's"
        )
    return Verdict(passed=not reasons, reasons=reasons, retentions=rows)


def _judge_task(gate: GateConfig, name: str, parent: Scores, child: Scores, seed: int) -> Retention:
    row = retention(name, parent, child, gate.samples, seed)
    row.limit, row.gated = gate.tasks.get(name, 0.0), name in gate.tasks
    if row.gated and not parent.above_chance:
        row.gated = False
        row.note = f"not gated: the parent is not above chance ({parent.mean:.3f} against {parent.chance:.3f})"
    return row


def _too_little(row: Retention, n: int) -> str:
    return (
        f"{row.task} keeps {row.ratio:.3f} of the parent, at least {row.low:.3f} with 95% confidence; "
        f"the limit is {row.limit:.3f} (n={n})"
    )
