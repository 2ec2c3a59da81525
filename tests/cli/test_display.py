"""Log lines: one style, said once, wrapped between words on a terminal and whole in a pipe."""

import io
from typing import Any

import pytest
import typer
from rich.console import Console

from agent_forge.cli import errors, render
from agent_forge.cli.render import Display
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import Event
from scripts import sample_run

LONG = (
    "reasoning differs in entropy_cost, halting_threshold and ponder_cost; "
    "the merged model keeps trunk's"
)


def event(kind: Any, phase: str = "bitnet", **fields: Any) -> Event:
    return Event(seq=1, time=0, kind=kind, phase=phase, **fields)


def lines_of(events: list[Event], width: int = 80, *, terminal: bool = False) -> list[str]:
    """Return what a display prints of events, line by line."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=24, force_terminal=terminal, color_system=None)
    with Display(out=console) as display:
        for one in events:
            display(one)
    return out.getvalue().splitlines()


@pytest.fixture(autouse=True)
def _dumb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")


def test_the_gate_says_what_was_kept_and_what_is_at_chance() -> None:
    verdict = sample_run.outcomes()[3].verdict or {}
    (line,) = lines_of([event("gate", metrics=verdict)])
    assert line == (
        "bitnet · gate passed: text .988 (≥ .985), tool calls 1.019 (≥ .970); at chance: reasoning, "
        "memory"
    )
    first = sample_run.outcomes()[0].verdict or {}
    (line,) = lines_of([event("gate", "cognate", metrics=first)])
    assert "gate passed: text 1.823 bits per byte, tool calls .805; at chance" in line
    refused = {"passed": False, "reasons": ["text keeps 0.93123 of the parent"]}
    (line,) = lines_of([event("gate", metrics=refused)])
    assert line == "bitnet · gate refused: text keeps 0.931 of the parent"


def test_tasks_at_chance_are_named_again_only_when_they_change() -> None:
    first, second = (sample_run.outcomes()[n].verdict or {} for n in (3, 4))
    changed = {
        **second,
        "retentions": {**second["retentions"], "memory": second["retentions"]["text"]},
    }
    lines = lines_of([event("gate", metrics=verdict) for verdict in (first, second, changed)], 200)
    assert ["at chance: reasoning" in line for line in lines] == [True, False, True]


def test_a_thing_said_once_is_not_said_again_for_each_stage_and_phase() -> None:
    text = "float32 products (bfloat16 measured 0.1 times as fast as float32)"
    events = [
        event("message", phase, stage=stage, message=f"{stage}: {text}")
        for phase in ("cognate", "bitnet")
        for stage in ("trunk", "reasoning")
    ]
    assert lines_of([*events, event("message", message="another thing")]) == [
        f"cognate · trunk: {text}",
        "bitnet · another thing",
    ]


def test_all_lines_begin_in_one_style_and_keep_names_in_capitals() -> None:
    events = [
        event("start", message="Make the weights ternary"),
        event("message", message="SVF chose 3 vectors"),
        event("complete", message="Trunk at 1.8231 bits per byte"),
        event("complete", message=""),
    ]
    assert lines_of(events) == [
        "bitnet · make the weights ternary",
        "bitnet · SVF chose 3 vectors",
        "bitnet · trunk at 1.82 bits per byte",
    ]


@pytest.mark.parametrize("width", [80, 40])
def test_on_a_terminal_lines_are_wrapped_between_words_with_an_indent(width: int) -> None:
    lines = lines_of([event("message", message=LONG)], width, terminal=True)
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert all(line.startswith("  ") for line in lines[1:])
    whole = " ".join(line.strip() for line in lines)
    assert whole == lines_of([event("message", message=LONG)])[0]


def test_a_line_keeps_its_indent_its_breaks_and_its_colons(
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = io.StringIO()
    console = Console(file=out, width=30, height=24, force_terminal=True, color_system=None)
    render.say(console, "two parts\n  - a point of several words that is wrapped")
    assert out.getvalue().splitlines() == [
        "two parts", "  - a point of several words", "    that is wrapped"
    ]  # fmt: skip
    render.say(render.console(stderr=False), "conf/a:warning:b.yaml")
    assert capsys.readouterr().out == "conf/a:warning:b.yaml\n"


@pytest.mark.parametrize("width", [80, 40])
def test_an_error_breaks_no_word_on_a_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    terminal = Console(file=out, width=width, height=24, force_terminal=True, color_system=None)
    monkeypatch.setattr(errors, "console", lambda: terminal)
    message = "train.steps must be at least 0, got -3 (outputs/mine.yaml:4); try train.steps=50"
    with pytest.raises(typer.Exit), errors.one_line_errors():
        raise ConfigError(message)
    lines = out.getvalue().splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == f"forge: {message}"


def test_a_piped_line_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert len(lines_of([event("message", message=LONG)], 40)) == 1


def test_figures_are_rounded_and_named_in_words() -> None:
    metrics = {
        "loss": 5.41987, "tokens_per_second": 17.0112, "memory_bytes": 812_000_000,
        "entropy_cost": 0.00001,
    }  # fmt: skip
    (line,) = lines_of(
        [event("progress", stage="memory_integration", step=3, total=5, metrics=metrics)]
    )
    assert line == (
        "bitnet · memory integration 3/5 loss 5.42, 17 tokens/s, memory 812 MB, entropy cost 0.00001"
    )
    assert render._figures(event("progress", metrics={"bytes": 47_900})) == "size 0.048 MB"


def test_brackets_of_a_message_are_no_markup() -> None:
    assert lines_of([event("warning", message="sources=[a,b] [bold]x")]) == [
        "bitnet · sources=[a,b] [bold]x"
    ]


@pytest.mark.parametrize("width", [120, 80, 40])
def test_the_live_bar_fits_its_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    with Display(out=console) as display:
        metrics = {"loss": 5.4199, "tokens_per_second": 1234.5}
        display(
            event("progress", "cognate", stage="adaptive_computation", step=300, total=700,
                  metrics=metrics)
        )  # fmt: skip
        assert display._progress is not None
        table = display._progress.make_tasks_table(display._progress.tasks)
        plain = Console(file=io.StringIO(), width=width, color_system=None)
        plain.print(table)
        text = plain.file.getvalue().rstrip()  # type: ignore[attr-defined]
    assert len(text) <= width
    assert "300/700" in text
    assert ("loss 5.42" in text) == (width >= 80)
    assert render._room_for_figures(width) >= 1
