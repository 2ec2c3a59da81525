"""The report page: every curve that was recorded is drawn, inside the page."""

import re

from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report import to_html


def test_a_recorded_curve_is_drawn_through_its_points_and_a_single_point_is_not() -> None:
    outcome = Outcome(phase="train", status="done", input_hash="0")
    curves = {"train": {"settle/loss": [(1, 4.0), (2, 2.0), (4, 1.0)], "settle/lr": [(1, 0.1)]}}
    page = to_html([outcome], curves)
    (points,) = re.findall(r'<polyline points="([^"]+)"', page)
    places = [tuple(map(float, point.split(","))) for point in points.split()]
    assert len(places) == 3
    assert places[0][1] < places[1][1] < places[2][1]  # the loss falls: further down the page
    assert places[1][0] - places[0][0] < places[2][0] - places[1][0]  # steps 1, 2, 4
    assert "settle/loss" in page
    assert "settle/lr" not in page
