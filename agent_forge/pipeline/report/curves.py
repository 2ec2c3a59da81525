"""The curves of a phase that say something: one per metric, smoothed, its stages in turn.

Reads progress events, writes points. A curve is shown where it has points enough and where its end
differs from its beginning by more than its own noise; ten short stages of noise are not ten charts.
Values that are not finite leave a gap.
"""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agent_forge.core.events import Event

METRICS = {
    "loss": "loss (nats per token)",
    "fitness": "fitness (more is better)",
    "gain": "gain (nats per token)",
}
LEAST_POINTS = 8
NOISE = 3.0  # standard errors by which the ends of a curve must differ
MOST_LINES = 5  # stages that have a line each
WINDOW_SHARE = 0.1  # this share of a stage's points makes one smoothed point
Points = list[tuple[float, float]]


@dataclass(slots=True, kw_only=True)
class Curve:
    """One metric of a phase; x counts the steps of the whole phase. stages: (name, points)."""

    metric: str
    stages: list[tuple[str, Points]]

    @property
    def label(self) -> str:
        """Return the vertical axis in words."""
        return METRICS.get(self.metric, self.metric)

    def smoothed(self) -> list[tuple[str, Points]]:
        """Return the stages with running means, in windows that grow with the stage.

        Many short stages are one line, because their pieces would say less than the whole.
        """
        if len(self.stages) > MOST_LINES:
            return [("", smooth([point for _, points in self.stages for point in points]))]
        return [(name, smooth(points)) for name, points in self.stages]


def telling_curves(events: Iterable[Event]) -> list[Curve]:
    """Return the curves of a phase that say something.

    A resumed phase may report a step twice; the later value counts.
    """
    stages: dict[str, dict[str, dict[int, float]]] = {}
    for event in events:
        if event.kind != "progress":
            continue
        for metric in METRICS:
            value = event.metrics.get(metric)
            if isinstance(value, (int, float)) and math.isfinite(value):
                stages.setdefault(metric, {}).setdefault(event.stage, {})[event.step] = float(value)
    every = [Curve(metric=metric, stages=_in_turn(parts)) for metric, parts in stages.items()]
    return [curve for curve in every if says_something(curve)]


def _in_turn(stages: dict[str, dict[int, float]]) -> list[tuple[str, Points]]:
    """Return the stages one after another: each begins at the step where the one before ended."""
    placed: list[tuple[str, Points]] = []
    start = 0.0
    for name, values in stages.items():
        placed.append((name, [(start + step, value) for step, value in sorted(values.items())]))
        start += max(values)
    return placed


def says_something(curve: Curve) -> bool:
    """Return whether some stage, or the whole curve, ends elsewhere than it began.

    Stages that begin where the one before did not end are about different things, such as the
    experts of four domains; then the whole says nothing that no stage says.
    """
    stages = [points for _, points in curve.stages]
    if any(map(moves, stages)):
        return True
    return not breaks(stages) and moves([point for points in stages for point in points])


def breaks(stages: Sequence[Points]) -> bool:
    """Return whether some stage begins further from the end of the one before than any stage moves."""
    spans = [max(y for _, y in points) - min(y for _, y in points) for points in stages]
    between = [
        _mean(after[: quarter(after)]) - _mean(before[-quarter(before) :])
        for before, after in itertools.pairwise(stages)
    ]
    return any(abs(jump) > max(spans) for jump in between)


def moves(points: Points) -> bool:
    """Return whether the last quarter differs from the first by more than the noise between
    neighbours.
    """
    if len(points) < LEAST_POINTS:
        return False
    values = [y for _, y in points]
    share = quarter(points)
    jumps = [after - before for before, after in itertools.pairwise(values)]
    # Neighbours differ by the noise of two points, so one point has half of that variance.
    noise = statistics.pstdev(jumps) / math.sqrt(2)
    change = _mean(points[-share:]) - _mean(points[:share])
    return abs(change) > NOISE * noise * math.sqrt(2 / share)


def quarter(points: Points) -> int:
    """Return how many points a quarter of them are, at least two."""
    return max(len(points) // 4, 2)


def _mean(points: Points) -> float:
    return statistics.fmean(y for _, y in points)


def smooth(points: Sequence[tuple[float, float]]) -> Points:
    """Return running means over a tenth of the points on both sides together; ends use what is
    there.
    """
    reach = int(len(points) * WINDOW_SHARE / 2)
    smoothed: Points = []
    for index, (x, _) in enumerate(points):
        window = [y for _, y in points[max(index - reach, 0) : index + reach + 1]]
        smoothed.append((x, statistics.fmean(window)))
    return smoothed
