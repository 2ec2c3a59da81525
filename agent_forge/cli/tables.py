"""Tables for the terminal."""

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from agent_forge.pipeline.estimate import Estimate
from agent_forge.pipeline.outcome import Outcome
from agent_forge.pipeline.report import quality_cell


def gate_table(outcomes: Sequence[Outcome]) -> Table:
    """Return the phases of a run with their quality, size, time and verdict."""
    table = Table(title="phases and gates", title_justify="left")
    for column, side in (
        ("phase", "left"), ("verdict", "left"), ("quality", "left"), ("packed", "right"), ("files", "right"),
        ("tok/s", "right"), ("memory", "right"), ("time", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    for outcome in outcomes:
        colour = {"done": "green", "rejected": "yellow"}.get(outcome.status, "red")
        table.add_row(
            outcome.phase,
            f"[{colour}]{'passed' if outcome.status == 'done' else outcome.status}[/{colour}]",
            quality_cell(outcome),
            human_bytes(outcome.deployable_bytes),
            human_bytes(outcome.file_bytes),
            f"{outcome.tokens_per_second:,.0f}",
            human_bytes(outcome.peak_memory_bytes),
            f"{outcome.seconds:,.0f} s",
        )
    return table


def estimate_table(estimates: Sequence[Estimate]) -> Table:
    """Return what a dry run found, with a total of several phases."""
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
        table.add_row("total", "", "", "", times, f"~{human_bytes(memory)} at most", f"~{human_bytes(disk)}")
    return table


def plain_table(rows: Sequence[dict[str, Any]], title: str = "") -> Table:
    """Return rows of plain values as a table with the keys of the first row as columns."""
    table = Table(title=escape(title) or None, title_justify="left")
    for key in rows[0] if rows else ():
        table.add_column(str(key), justify="right" if isinstance(rows[0][key], (int, float)) else "left")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    return table


def _cell(value: Any) -> str:
    """Return a plain value as a cell: lists as their items, "-" where there are none."""
    if isinstance(value, float):
        return f"{value:,.4g}"
    return escape(" ".join(map(str, value)) or "-" if isinstance(value, list) else str(value))


def human_bytes(count: float) -> str:
    """Return a size in kB, MB or GB (powers of ten)."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B"
