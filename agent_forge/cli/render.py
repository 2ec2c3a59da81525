"""Show events: a live bar on a terminal, a line every few seconds elsewhere, JSON with --json."""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from agent_forge.cli import layout
from agent_forge.cli.layout import Grid, wrapped
from agent_forge.core.events import Event, json_safe

LINE_SECONDS = 5.0
INDENT = 2  # columns by which the lines after the first are moved in
MEMBER = ("#", "technique", "fitness")  # what is always said of a member of a population
COUNTERS = 20  # columns of "700/700" and the time that is left
NARROW = 64  # a terminal with fewer columns has no room for the bar itself


class Board(Progress):
    """A bar, and below it a table of the rows that an event brings (a population)."""

    rows: Sequence[Mapping[str, object]] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, and the table when there is one."""
        yield from super().get_renderables()
        if self.rows:
            yield _population(self.rows)


def _population(rows: Sequence[Mapping[str, object]]) -> Grid:
    """Return the members of a search as a table that fits: where they come from and their tasks
    give way, the last of them first.
    """
    names = list(rows[0])
    columns = [
        layout.Column(
            head=_words(name),
            right=isinstance(rows[0][name], (int, float)),
            is_text=isinstance(rows[0][name], str),
            spare=0 if name in MEMBER else 1 + place,
        )
        for place, name in enumerate(names)
    ]
    return Grid(columns=columns, rows=[[_words(str(row[name])) for name in names] for row in rows])


def console(*, stderr: bool = True) -> Console:
    """Return a console that honours NO_COLOR and TERM=dumb; logs go to stderr."""
    size: dict[str, int] = {}
    if os.environ.get("TERM") in ("dumb", "unknown"):  # rich would take these for 80 columns wide
        size = dict(zip(("width", "height"), shutil.get_terminal_size(), strict=True))
    return Console(  # emoji: a path may hold ":ok:"
        stderr=stderr, highlight=False, soft_wrap=True, emoji=False, **size,  # type: ignore[arg-type]
    )  # fmt: skip


def say(out: Console, text: str, style: str = "") -> None:
    """Print text: on a terminal wrapped between words and indented, as it is elsewhere.

    A log that is piped stays one line per record, which grep needs.
    """
    for whole in text.splitlines() or [""]:
        for line in wrapped(whole, out.width, indent=INDENT) if out.is_terminal else [whole]:
            out.print(line, style=style, markup=False, soft_wrap=True)


class Display:
    """A listener for events, and a context manager that leaves the terminal in order."""

    def __init__(self, *, as_json: bool = False, out: Console | None = None) -> None:
        self.as_json = as_json
        self.console = out or console()
        self._progress: Board | None = None
        self._bar: TaskID | None = None
        self._stage = ""
        self._last_line = 0.0
        self._told = set[str]()
        self._guessed: list[str] = []
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
            return lambda event: print_json_line(asdict(event))
        if self.console.is_terminal and os.environ.get("TERM") != "dumb":
            return self._live
        return self._lines

    def _live(self, event: Event) -> None:
        if event.kind != "progress":
            self._end_bar()
            self._say(event)
            return
        stage = f"{event.phase} · {_words(event.stage)}"
        if self.console.width < NARROW:
            stage = _cut(_words(event.stage), self.console.width - COUNTERS)
        if self._progress is None:
            columns = _bar_columns(self.console.width)
            self._progress = Board(*columns, console=self.console, transient=True)
            self._progress.start()
        if self._bar is None or stage != self._stage:
            if self._bar is not None:
                self._progress.remove_task(self._bar)
            self._bar = self._progress.add_task(stage, total=event.total, figures="")
            self._stage = stage
        self._progress.rows = event.metrics.get("population", ())
        self._progress.update(
            self._bar, completed=event.step, total=event.total,
            figures=_escape(_figures(event, _room_for_figures(self.console.width))),
        )  # fmt: skip

    def _lines(self, event: Event) -> None:
        if event.kind == "progress":
            now = time.monotonic()
            if now - self._last_line < LINE_SECONDS:
                return
            self._last_line = now
            place = f"{event.phase} · {_words(event.stage)} {event.step}/{event.total}"
            say(self.console, f"{place} {_figures(event)}".rstrip())
            return
        self._say(event)

    def _say(self, event: Event) -> None:
        if event.kind == "start":
            say(self.console, f"{event.phase} · {_clause(event.message)}", "bold")
        elif event.kind == "gate":
            colour = "green" if event.metrics.get("passed") else "red"
            say(self.console, f"{event.phase} · gate {self._gate_line(event)}", colour)
        elif event.kind in ("warning", "message", "complete") and self._is_new(event):
            style = "yellow" if event.kind == "warning" else ""
            say(self.console, f"{event.phase} · {_clause(_tidy(event.message))}", style)

    def _gate_line(self, event: Event) -> str:
        """Return a gate's verdict; the tasks at chance are named when they are others than before."""
        from agent_forge.pipeline.report import facts

        guessed = facts.guessed_in(event.metrics)
        is_news, self._guessed = guessed != self._guessed, guessed
        return facts.gate_line(event.metrics, name_guessed=is_news)

    def _is_new(self, event: Event) -> bool:
        """Return whether a message has not been said yet, in another stage or phase of the run."""
        text = event.message.removeprefix(f"{event.stage}: ")
        if not text or text in self._told:
            return False
        self._told.add(text)
        return True

    def _end_bar(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress, self._bar = None, None


def _bar_columns(width: int) -> list[ProgressColumn]:
    """Return the parts of the bar that a terminal of `width` has room for."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=width < NARROW),
    ]
    if width >= NARROW:
        columns[:0] = [SpinnerColumn()]
        columns.insert(2, BarColumn(bar_width=20 if width > 80 else 10))
        columns.append(TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)))
    return columns


def _cut(text: str, width: int) -> str:
    """Return text with an ellipsis where it is longer than `width`."""
    return text if len(text) <= width else text[: max(width - 1, 1)] + "\N{HORIZONTAL ELLIPSIS}"


def _room_for_figures(width: int) -> int:
    """Return how many metrics fit beside the bar."""
    return 4 if width >= 140 else 2 if width >= 100 else 1


def _figures(event: Event, count: int = 4) -> str:
    """Return the first metrics of an event in a few characters each."""
    from agent_forge.pipeline.report import words

    parts = []
    for name, value in event.metrics.items():
        if isinstance(value, list):
            continue
        if name.endswith("bytes") and isinstance(value, (int, float)):
            said = _words(name.removesuffix("bytes")).strip() or "size"
            parts.append(f"{said} {words.size(value)}")
            continue
        figure = words.number(value) if isinstance(value, (int, float)) else str(value)
        is_rate = name == "tokens_per_second"
        parts.append(f"{figure} tokens/s" if is_rate else f"{_words(name)} {figure}")
    return ", ".join(parts[:count])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _clause(text: str) -> str:
    from agent_forge.pipeline.report import words

    return words.clause(text)


def _tidy(text: str) -> str:
    from agent_forge.pipeline.report import words

    return words.tidy(text)


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def print_json_line(value: object) -> None:
    """Print a value as one line of strict JSON on stdout, after the events that went there."""
    print(json.dumps(json_safe(value), default=str, allow_nan=False), flush=True)


def print_json(value: object) -> None:
    """Print an answer as JSON: one object, or one line per object of a list."""
    for entry in value if isinstance(value, list) else [value]:
        print_json_line(entry)
