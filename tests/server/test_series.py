"""Thinned curves: no peak is lost, gaps stay, and the order does."""

import math

import numpy as np
import pytest

from agent_forge.server.database import Database
from agent_forge.server.series import Point, job_series, thinned
from agent_forge.server.store import StoredEvent, add_event


def point(number: int, value: float | None) -> Point:
    return Point(seq=number, time=0.0, attempt=1, stage="", step=number, value=value)


@pytest.mark.parametrize(("count", "most"), [(6, 5), (100, 5), (101, 10), (10_007, 500)])
def test_ends_and_extremes_of_every_curve_stay(count: int, most: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    points = [point(i, float(value)) for i, value in enumerate(values)]
    thin = thinned(points, most)
    assert len(thin) <= most
    assert [one.seq for one in thin] == sorted({one.seq for one in thin})
    assert all(points[one.seq] is one for one in thin)
    assert (thin[0], thin[-1]) == (points[0], points[-1])
    shown = [one.value for one in thin]
    assert (min(shown), max(shown)) == (values.min(), values.max())


def test_a_short_curve_stays_as_it_is_and_a_gap_is_not_drawn_over() -> None:
    points = [point(i, float(i)) for i in range(5)]
    assert thinned(points, 5) == points
    many = [point(i, None if i == 700 else float(i)) for i in range(1000)]
    assert [one.seq for one in thinned(many, 20) if one.value is None] == [700]


def test_metrics_become_series_by_phase_and_name(database: Database) -> None:
    rows = [
        ("progress", "bitnet", {"loss": 2.0, "note": "x", "flag": True}),
        ("progress", "bitnet", {"loss": "nan", "rows": [1]}),
        ("metrics", "bitnet", {"loss": math.inf}),
        ("message", "bitnet", {"loss": 9.0}),
        ("progress", "train", {"loss": 1, "speed": "-inf"}),
    ]
    for number, (kind, phase, metrics) in enumerate(rows, start=1):
        event = StoredEvent(
            seq=0, job_id="j", attempt=1, time=0.0, kind=kind, phase=phase, metrics=metrics
        )
        database.write(lambda c, e=event, n=number: add_event(c, e, "a", n)).result()
    with database.read() as connection:
        last, series = job_series(connection, "j", 0, 500)
    assert last == 5
    assert [(one.phase, one.name, [p.value for p in one.points]) for one in series] == [
        ("bitnet", "loss", [2.0, None, None]), ("train", "loss", [1.0]), ("train", "speed", [None]),
    ]  # fmt: skip
