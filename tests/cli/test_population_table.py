"""The live display shows the population of a search below its bar."""

import io

import pytest
from rich.console import Console

from agent_forge.cli import render
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


@pytest.mark.parametrize("width", [80, 40])
def test_a_population_fits_its_terminal_and_cuts_no_name(width: int) -> None:
    tasks = ("text", "reasoning", "memory", "mixed", "tools")
    rows = [
        {"#": place, "technique": "task_arithmetic", "from": "adaptive_computation",
         "fitness": 0.0361, **dict.fromkeys(tasks, -0.033)}
        for place in (1, 2)
    ]  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width).print(render._population(rows))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert ["task arithmetic" in line and "0.0361" in line for line in lines if line[0].isdigit()] == [
        True, True
    ]  # fmt: skip


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
