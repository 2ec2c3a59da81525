"""Show events: a live bar on a terminal, a line every few seconds elsewhere, JSON with --json."""

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from agent_forge.core.events import Event

LINE_SECONDS = 5.0


class Board(Progress):
    """A bar, and below it a table of the rows that an event brings (a population)."""

    rows: Sequence[Mapping[str, object]] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the table when there is one."""
        yield from super().get_renderables()
        if self.rows:
            table = Table(*map(str, self.rows[0]), box=None, pad_edge=False, header_style="dim")
            for row in self.rows:
                table.add_row(*map(_escape, map(str, row.values())))
            yield table


def console(*, stderr: bool = True) -> Console:
    """Return a console that honours NO_COLOR and TERM=dumb; logs go to stderr."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


class Display:
    """A listener for events, and a context manager that leaves the terminal in order."""

    def __init__(self, *, as_json: bool = False, out: Console | None = None) -> None:
        self.as_json = as_json
        self.console = out or console()
        self._progress: Board | None = None
        self._bar: TaskID | None = None
        self._stage = ""
        self._last_line = 0.0
        self._show = self._choose()

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_bar()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self._show(event)

    def _choose(self) -> Callable[[Event], None]:
        if self.as_json:
            return lambda event: print(json.dumps(asdict(event)), flush=True)
        if self.console.is_terminal and os.environ.get("TERM") != "dumb":
            return self._live
        return self._lines

    def _live(self, event: Event) -> None:
        if event.kind != "progress":
            self._end_bar()
            self._say(event)
            return
        stage = f"{event.phase} · {event.stage}"
        if self._progress is None:
            self._progress = Board(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=20),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        if self._bar is None or stage != self._stage:
            if self._bar is not None:
                self._progress.remove_task(self._bar)
            self._bar = self._progress.add_task(stage, total=event.total, figures="")
            self._stage = stage
        self._progress.rows = event.metrics.get("population", ())
        self._progress.update(
            self._bar, completed=event.step, total=event.total, figures=_figures(event)
        )

    def _lines(self, event: Event) -> None:
        if event.kind == "progress":
            now = time.monotonic()
            if now - self._last_line < LINE_SECONDS:
                return
            self._last_line = now
            self.console.print(
                f"{event.phase} · {event.stage} {event.step}/{event.total} {_figures(event)}"
            )
            return
        self._say(event)

    def _say(self, event: Event) -> None:
        if event.kind == "start":
            self.console.print(f"[bold]{event.phase}[/bold] {event.message}")
        elif event.kind == "warning":
            self.console.print(f"[yellow]{event.phase}: {_escape(event.message)}[/yellow]")
        elif event.kind == "gate":
            passed = event.metrics.get("passed")
            word, colour = ("passed", "green") if passed else ("refused", "red")
            detail = "" if passed else f": {_escape(event.message)}"
            self.console.print(f"{event.phase} · gate [{colour}]{word}[/{colour}]{detail}")
        elif event.kind in ("message", "complete") and event.message:
            self.console.print(f"{event.phase} · {_escape(event.message)}")

    def _end_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._bar = None, None


def _figures(event: Event) -> str:
    """Return the metrics of an event in a few characters each."""
    pairs = [pair for pair in event.metrics.items() if not isinstance(pair[1], list)]
    parts = [
        f"{name} {value:,.4g}" if isinstance(value, (int, float)) else f"{name} {value}"
        for name, value in pairs[:4]
    ]
    return _escape("  ".join(parts))


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def print_json_line(value: object) -> None:
    """Print a value as one JSON line on stdout, after the events that went there."""
    print(json.dumps(value, default=str), flush=True)


def print_json(value: object) -> None:
    """Print an answer as JSON: one object, or one line per object of a list."""
    for entry in value if isinstance(value, list) else [value]:
        print_json_line(entry)
