"""What the terminal shows fits 80 and 40 columns, breaks no word, and says what the run's answer is."""

import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from agent_forge.cli import layout, tables
from agent_forge.cli.layout import Column, Grid
from agent_forge.pipeline.estimate import Estimate
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report.facts import gather
from scripts import sample_run

WIDTHS = [80, 40]


def shown(table: RenderableType, width: int = 80) -> list[str]:
    """Return the lines that a console of a width prints."""
    console = Console(width=width, file=io.StringIO(), soft_wrap=True)
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def run_rows() -> list[Outcome]:
    """Return the recorded run with a refused and an interrupted phase at its end."""
    outcomes = sample_run.outcomes()
    outcomes[6].status = "rejected"
    (outcomes[6].verdict or {}).update(passed=False, reasons=[REASON])
    outcomes[7].status, outcomes[7].verdict = "interrupted", None
    outcomes[7].message = "compress stopped by SIGTERM"
    return outcomes


REASON = (
    "text keeps 0.931 of the parent, at least 0.912 and at most 0.95; the limit is 0.95 (n=128)"
)


def checkpoints() -> list[dict[str, Any]]:
    return [
        {
            "path": outcome.outputs[0], "id": outcome.checkpoint_id, "phase": outcome.phase,
            "deployable_bytes": outcome.deployable_bytes, "file_bytes": outcome.file_bytes,
            "parents": [outcome.checkpoint_id] * (4 if outcome.phase == "evomerge" else 1),
        }
        for outcome in sample_run.outcomes()
    ]  # fmt: skip


def statuses() -> list[dict[str, Any]]:
    rows = [
        {"phase": o.phase, "verdict": "passed", "tone": "good", "seconds": o.seconds,
         "reason": "", "at": ""}
        for o in sample_run.outcomes()
    ]  # fmt: skip
    rows[3] |= {"verdict": "refused", "tone": "bad", "reason": REASON}
    rows[4] |= {"verdict": "interrupted", "tone": "bad", "at": "chaos_2 14/40", "seconds": 0.0}
    return rows


def estimates() -> list[Estimate]:
    outcomes = sample_run.outcomes()
    return [
        Estimate(
            phase=o.phase, sources=[before.outputs[0]] if before else [],
            out=f"outputs/run_all/{position}-{o.phase}", device="cpu", parameters=1, tokens=1,
            seconds=o.seconds, memory_bytes=o.peak_memory_bytes, disk_bytes=2 * o.file_bytes,
        )
        for position, (o, before) in enumerate(zip(outcomes, [None, *outcomes[:-1]], strict=True), start=1)
    ]  # fmt: skip


SCORES = [
    {"task": "tools", "metric": "right answers by right calls", "value": 0.8437, "low": 0.78,
     "high": 0.906, "n": 128, "chance": 0.0, "first": 0.8, "second": 0.84, "kept": 1.048,
     "grammar": "calls", "kinds": {"1 digit": {"value": 0.9, "low": 0.8, "high": 1.0, "n": 64}}},
    {"task": "text", "metric": "bits per byte", "value": 1.8331, "low": 1.766, "high": 1.907,
     "n": 128, "chance": 8.0, "first": 1.82, "second": 1.83, "kept": 0.995},
]  # fmt: skip

SCREENS: dict[str, Callable[[], RenderableType]] = {
    "gates": lambda: tables.gate_table(run_rows()),
    "list": lambda: tables.checkpoint_table(checkpoints(), "outputs/run_all"),
    "status": lambda: tables.status_table(statuses(), "outputs/run_all"),
    "estimate": lambda: tables.estimate_table(estimates()),
    "eval": lambda: tables.score_table(SCORES, "outputs/run_all/8-compress, test split"),
    "compare": lambda: tables.compare_table(SCORES, "8-compress (second), trunk (first)"),
    "plain": lambda: tables.plain_table(
        [{"job": 0, "overrides": ["a=1", "b.c=2"], "file_bytes": 12, "summary": f"{REASON} twice"}]
    ),
}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SCREENS)
def test_no_line_is_longer_than_the_terminal_and_no_word_is_cut(name: str, width: int) -> None:
    lines = shown(SCREENS[name](), width)
    assert lines
    assert max(map(len, lines)) <= width
    known = " ".join(shown(SCREENS[name](), 1000)).split()
    assert {word for line in lines for word in line.split()} <= {*known, "job"}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_answer_of_a_run_fits_and_says_size_quality_skills_and_what_to_try(width: int) -> None:
    run = gather(sample_run.outcomes(), "outputs/run_all")
    lines = [line.plain for line in tables.answer(run, Path("outputs/run_all/report.html"), width)]
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).replace("\\", "").split())
    for part in (
        "0.394 MB, 14.5 times smaller than trunk (5.73 MB)",
        "passed; of trunk it kept text .995 (≥ .993; limit .900), tool calls 1.048 (≥ .990; limit .850)",
        "text: 1.83 bits per byte; tool calls: 84.4% right",
        "reasoning, memory: at chance, no better than guessing",
        "id 8888888888",
        "forge chat outputs/run_all/8-compress 'What is 48 plus 77?'",
        "forge compare outputs/run_all/1-cognate/trunk outputs/run_all/8-compress -t text,tools",
        "forge inspect outputs/run_all/8-compress",
    ):
        assert part in text
    assert len(lines) <= (16 if width == 80 else 30)


def test_the_answer_of_a_run_at_chance_promises_nothing() -> None:
    outcomes = sample_run.outcomes()
    for row in (outcomes[-1].verdict or {})["scores"].values():
        row["at_chance"] = row["metric"] != "bits per byte"
    text = "\n".join(line.plain for line in tables.answer(gather(outcomes), None, 80))
    assert "no task above chance yet; text: 1.83 bits per byte" in text
    assert "right" not in text
    failed = Outcome(phase="cognate", status="failed", input_hash="0")
    assert "no phase was accepted" in tables.answer(gather([failed]), None, 80)[0].plain


@pytest.mark.parametrize("width", WIDTHS)
def test_commands_on_several_lines_are_the_same_to_a_shell(width: int) -> None:
    import shlex

    line = "forge chat outputs/run_all/8-compress 'What is 48 plus 77?' --device cpu -t text,tools"
    shown_lines = layout.command(line, width)
    assert shlex.split("\n".join(shown_lines).replace("\\\n", " ")) == shlex.split(line)
    assert max(map(len, shown_lines)) <= width


def test_the_gate_table_has_one_line_per_phase_and_names_what_is_at_chance() -> None:
    lines = shown(tables.gate_table(run_rows()))
    rows = {line.split()[0]: line for line in lines if line.strip()}
    assert rows["bitnet"].split() == [
        "bitnet", "passed", "1.832", ".820", "1.66", "MB", "5.93", "MB", "782", "MB", "129", "s",
    ]  # fmt: skip
    assert "refused" in rows["adas"]
    assert "interrupted" in rows["compress"]
    assert "At chance, so not gated: reasoning, memory." in lines


def test_at_forty_columns_a_table_still_says_verdict_scores_and_size() -> None:
    lines = shown(tables.gate_table(sample_run.outcomes()), 40)
    (line,) = [line for line in lines if line.startswith("compress")]
    assert line.split() == ["compress", "passed", "1.833", ".844", "0.394", "MB"]
    (line,) = [line for line in shown(SCREENS["list"](), 40) if line.startswith("8-compress")]
    assert line.split() == ["8-compress", "8888888888", "0.394", "MB"]


def test_a_path_that_all_share_is_said_once() -> None:
    for name in ("list", "estimate"):
        assert "\n".join(shown(SCREENS[name]())).count("outputs/run_all") == 1
    assert layout.shared_folder(["a/b/c", "a/b/d/e"]) == "a/b/"
    assert layout.shared_folder(["a/bc", "a/bd"]) == "a/"
    assert layout.shared_folder(["/x", "/y"]) == layout.shared_folder(["a", "b/c"]) == ""
    assert layout.shared_folder(["a/b"]) == layout.shared_folder(["/a/b", "a/b"]) == ""


def test_ids_have_ten_characters_and_nothing_is_zero_bytes() -> None:
    rows = [{**checkpoints()[0], "deployable_bytes": 0, "file_bytes": 0}]
    text = "\n".join(shown(tables.checkpoint_table(rows, "outputs")))
    assert re.search(r"\b1{10}\b", text)
    assert "0 B" not in text
    assert "MB" not in text


def test_a_reason_is_wrapped_between_words_beside_its_phase() -> None:
    lines = shown(SCREENS["status"]())
    start = next(number for number, line in enumerate(lines) if line.startswith("bitnet"))
    column = lines[start].index("text keeps")
    assert lines[start + 1][:column].isspace()
    assert lines[start + 1][column] != " "
    assert "at chaos 2 14/40" in lines[start + 2]


def test_a_grid_that_cannot_fit_shows_each_row_below_its_first_cell() -> None:
    wide = Grid(columns=[Column(head="name"), Column(head="path")], rows=[["a", "x" * 30]])
    assert [line.plain for line in wide.lines(24)] == ["a", "  path  " + "x" * 30]


def test_columns_without_a_value_are_left_out() -> None:
    grid = Grid(columns=[Column(head="name"), Column(head="none")], rows=[["a", ""], ["b", ""]])
    assert [line.plain for line in grid.lines(80)] == ["name", "a", "b"]


def test_text_is_wrapped_between_words_with_an_indent() -> None:
    lines = layout.wrapped("one two three four", 9, indent=2)
    assert lines == ["one two", "  three", "  four"]
    assert layout.wrapped("a/very/long/path/without/spaces", 8) == [
        "a/very/long/path/without/spaces"
    ]
    assert layout.wrapped("", 8) == [""]


@pytest.mark.parametrize("page", ["", "run-all", "tools"])
def test_help_on_a_narrow_terminal_cuts_no_name_and_no_sentence(page: str) -> None:
    command = [sys.executable, "-m", "agent_forge", *page.split(), "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "40"}
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 40
    assert not re.search(r"\w\.\.\.$|\u2026", done.stdout, re.MULTILINE)
    if page == "run-all":
        assert "--resume / --no-resume" in done.stdout
