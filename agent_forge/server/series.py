"""Curves of a job's metrics, thinned to what a screen can show.

Reads the stored events of one job; only points behind a number, so that a client that has drawn
some asks for the rest. Every stretch of a curve keeps its smallest and its largest value, so that no
peak is lost; a value that is not a number stays as a gap.
"""

import json
import math
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

WITH_POINTS = ("progress", "metrics")
# Values that core/events.py writes as text, because JSON has no numbers for them.
NOT_NUMBERS = ("nan", "inf", "-inf")
KEPT_PER_STRETCH = 3  # the smallest, the largest, and a gap
LEAST_POINTS = KEPT_PER_STRETCH + 2  # one stretch between the first point and the last


@dataclass(slots=True, kw_only=True, frozen=True)
class Point:
    """One value. seq: of the event. step: as its stage counts. value: None for a gap."""

    seq: int
    time: float
    attempt: int
    stage: str
    step: int
    value: float | None


@dataclass(slots=True, kw_only=True)
class Series:
    """One metric of one phase, oldest point first. total: how many points there were."""

    phase: str
    name: str
    total: int = 0
    points: list[Point] = field(default_factory=list)


def job_series(
    connection: sqlite3.Connection, job_id: str, after: int, most: int
) -> tuple[int, list[Series]]:
    """Return (the number to go on from, the series of a job behind the number `after`).

    most: points of each series, at least LEAST_POINTS.
    """
    marks = ", ".join("?" * len(WITH_POINTS))
    rows = connection.execute(
        "SELECT seq, time, attempt, phase, stage, step, metrics FROM event "
        f"WHERE job_id = ? AND seq > ? AND source != '' AND kind IN ({marks}) ORDER BY seq",
        [job_id, after, *WITH_POINTS],
    )
    series: dict[tuple[str, str], Series] = {}
    last = after
    for row in rows:
        last = row["seq"]
        for name, value in _numbers(row["metrics"]).items():
            key = (row["phase"], name)
            one = series.setdefault(key, Series(phase=row["phase"], name=name))
            one.points.append(
                Point(
                    seq=last, time=row["time"], attempt=row["attempt"], stage=row["stage"],
                    step=row["step"], value=value,
                )
            )  # fmt: skip
    for one in series.values():
        one.total = len(one.points)
        one.points = thinned(one.points, most)
    return last, list(series.values())


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """Return at most `most` points in their order: the first, the last, and of each stretch of equal
    length the smallest, the largest and the first gap.
    """
    if len(points) <= most:
        return list(points)
    inner = range(1, len(points) - 1)
    stretches = (most - 2) // KEPT_PER_STRETCH
    chosen = {0, len(points) - 1}
    for number in range(stretches):
        start = number * len(inner) // stretches
        stretch = inner[start : (number + 1) * len(inner) // stretches]
        gaps = [i for i in stretch if points[i].value is None]
        values = [(value, i) for i in stretch if (value := points[i].value) is not None]
        chosen.update(gaps[:1])
        if values:
            chosen.update((min(values)[1], max(values)[1]))
    return [points[i] for i in sorted(chosen)]


def _numbers(text: str) -> dict[str, float | None]:
    """Return the metrics of an event that are numbers, None for those that are not finite."""
    numbers: dict[str, float | None] = {}
    for name, value in json.loads(text).items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            numbers[name] = float(value) if math.isfinite(value) else None
        elif value in NOT_NUMBERS:
            numbers[name] = None
    return numbers
