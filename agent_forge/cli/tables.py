"""Tables for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from agent_forge.pipeline.estimate import Estimate
from agent_forge.pipeline.outcome import Outcome


def gate_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the phases of a run: verdict, score on each task that some model can do, size, time.

    Intervals are in the report; a task on which every model guesses is named below the table.
    """
    scores = [(outcome.verdict or {}).get("scores", {}) for outcome in outcomes]
    tasks = list(dict.fromkeys(name for each in scores for name in each))
    able = [
        name
        for name in tasks
        if any(name in each and not each[name].get("at_chance") for each in scores)
    ]
    guessed = [name for name in tasks if name not in able]
    table = Table(
        title="phases and gates",
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    table.caption = f"At chance, so not gated: {escape(', '.join(guessed))}." if guessed else None
    table.add_column("phase", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for column in (*able, "packed", "files", "memory", "time"):
        table.add_column(column, justify="right")
    for outcome, each in zip(outcomes, scores, strict=True):
        colour = {"done": "green", "rejected": "yellow"}.get(outcome.status, "red")
        table.add_row(
            outcome.phase,
            f"[{colour}]{'passed' if outcome.status == 'done' else outcome.status}[/{colour}]",
            *(_score(each.get(name)) for name in able),
            human_bytes(outcome.deployable_bytes),
            human_bytes(outcome.file_bytes),
            human_bytes(outcome.peak_memory_bytes),
            f"{outcome.seconds:,.0f} s",
        )
    return table


def _score(metric: Mapping[str, Any] | None) -> str:
    """Return the score of one task as a cell."""
    if metric is None:
        return "-"
    return "chance" if metric.get("at_chance") else f"{metric['value']:.3f}"


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """Return the estimates of a dry run, with a total where there are several phases."""
    table = Table("phase", "reads", "writes", "device", "time", "memory", "disk")
    for column in table.columns[1:3]:
        column.overflow = "fold"
    for estimate in estimates:
        table.add_row(
            estimate.phase,
            escape(", ".join(estimate.sources)) or "nothing",
            escape(estimate.out),
            estimate.device,
            f"~{estimate.seconds:,.0f} s",
            f"~{human_bytes(estimate.memory_bytes)}",
            f"~{human_bytes(estimate.disk_bytes)}",
        )
    if len(estimates) > 1:
        seconds, disk = sum(e.seconds for e in estimates), sum(e.disk_bytes for e in estimates)
        memory = max(e.memory_bytes for e in estimates)
        times = f"~{seconds:,.0f} s"
        table.add_row(
            "total", "", "", "", times, f"~{human_bytes(memory)} at most", f"~{human_bytes(disk)}"
        )
    return table


def plain_table(rows: Sequence[dict[str, Any]], title: str = "") -> Table:
    """Return rows of plain values as a table whose columns are the keys of the first row."""
    table = Table(title=escape(title) or None, title_justify="left")
    for key in rows[0] if rows else ():
        table.add_column(
            str(key), justify="right" if isinstance(rows[0][key], (int, float)) else "left"
        )
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    """Return a plain value as a cell; a list as its items, an empty one as "-"."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return escape(" ".join(map(str, value)) or "-" if isinstance(value, list) else str(value))


def human_bytes(count: float) -> str:
    """Return a size in kB, MB or GB (powers of ten), with three figures."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            value = count / size
            return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{count:,.0f} B"
