"""The live display shows the population of a search below its bar."""

import io

import pytest
from rich.console import Console

from agent_forge.cli.render import Display
from agent_forge.core.events import Event


def test_a_progress_event_with_a_population_shows_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    rows = [
        {"#": 1, "technique": "ties", "fitness": 0.125},
        {"#": 2, "technique": "[slerp]", "fitness": -0.5},
    ]
    metrics = {"fitness": 0.125, "population": rows}
    with Display(out=Console(file=out, force_terminal=True, width=80)) as display:
        display(
            Event(
                seq=1,
                time=0,
                kind="progress",
                phase="evomerge",
                stage="generations",
                step=1,
                total=3,
                metrics=metrics,
            )
        )
        assert display._progress is not None
        display._progress.refresh()
    shown = out.getvalue()
    assert "ties" in shown
    assert "[slerp]" in shown
    assert "technique" in shown
    assert "fitness 0.125" in shown
    assert "population" not in shown


def test_lines_off_a_terminal_leave_the_rows_out() -> None:
    out = io.StringIO()
    metrics = {"population": [{"#": 1, "technique": "ties"}], "fitness": 0.5}
    with Display(out=Console(file=out, width=80)) as display:
        display(
            Event(
                seq=1,
                time=0,
                kind="progress",
                phase="evomerge",
                stage="generations",
                step=1,
                total=3,
                metrics=metrics,
            )
        )
    assert out.getvalue() == "evomerge · generations 1/3 fitness 0.5\n"
