"""The one stream of progress: typed records with a sequence number, appended to events.jsonl.

The terminal, `--json`, the report, the service and any tracker read this stream; nothing else
reports progress. A reader of a growing file goes on from the byte where it stopped.
"""

import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

Kind = Literal[
    "start", "progress", "message", "warning", "metrics", "artefact", "gate", "complete", "error"
]
READ_BYTES = 1 << 22  # most bytes of one read, so that a long file does not fill the memory
TAIL_BYTES = 64  # they hold the attempt, which comes last in a line


@dataclass(slots=True, kw_only=True)
class Event:
    """One record.

    step, total: counted in the unit that `stage` names. time: seconds since the epoch.
    attempt: the run of the process that wrote it. `seq` starts again when a run drops an earlier
    one, so (attempt, seq) names an event for good.
    """

    seq: int
    time: float
    kind: Kind
    phase: str
    stage: str = ""
    step: int = 0
    total: int = 0
    message: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    attempt: str = ""


class EventLog:
    """Append events of one phase to a file and to listeners.

    Appending is one `write` of a whole line, so a killed process leaves at most one torn last line,
    which readers skip. `progress` records are thinned to `interval_seconds`, except the last of a
    stage.
    """

    def __init__(
        self,
        path: Path | None,
        phase: str,
        listeners: tuple[Callable[[Event], None], ...] = (),
        interval_seconds: float = 0.5,
        attempt: str = "",
    ) -> None:
        self.path = path
        self.phase = phase
        self.attempt = attempt or new_attempt()
        self.listeners = listeners
        self.interval_seconds = interval_seconds
        self._last_progress: dict[str, float] = {}
        self._seq = 0
        self._file: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            _end_torn_line(path)
            self._seq = max((event.seq for event in read_events(path)), default=0)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def emit(self, kind: Kind, **fields: Any) -> Event:
        """Append one event and tell the listeners; returns it."""
        self._seq += 1
        event = Event(
            seq=self._seq, time=time.time(), kind=kind, phase=self.phase, attempt=self.attempt,
            **fields,
        )  # fmt: skip
        event.metrics = json_safe(event.metrics)
        if self._file is not None:
            os.write(self._file, (json.dumps(asdict(event)) + "\n").encode())
        for listener in self.listeners:
            listener(event)
        return event

    def progress(
        self, stage: str, step: int, total: int, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Report that `step` of `total` is done in `stage` (thinned in time; the last step is
        always written).
        """
        now = time.monotonic()
        if step < total and now - self._last_progress.get(stage, -math.inf) < self.interval_seconds:
            return
        self._last_progress[stage] = now
        self.emit("progress", stage=stage, step=step, total=total, metrics=dict(metrics or {}))

    def message(self, text: str, stage: str = "") -> None:
        """Show one line to the user."""
        self.emit("message", stage=stage, message=text)

    def warning(self, text: str, stage: str = "") -> None:
        """Warn the user in one line."""
        self.emit("warning", stage=stage, message=text)

    def metrics(self, stage: str, metrics: Mapping[str, Any]) -> None:
        """Record final figures of a stage."""
        self.emit("metrics", stage=stage, metrics=dict(metrics))

    def artefact(self, path: Path | str, message: str = "") -> None:
        """Name a file or checkpoint that was written."""
        self.emit("artefact", message=message or str(path), metrics={"path": str(path)})

    def close(self) -> None:
        """Close the file; further events go to listeners only."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


@contextmanager
def choices_said(say: Callable[[str], None]) -> Iterator[None]:
    """Give `say` each line, once, that rooms without events log of what they chose (INFO), while
    the context lasts.
    """
    log, handler = logging.getLogger("agent_forge"), _Choices(say)
    level = log.level
    log.addHandler(handler)
    log.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


class _Choices(logging.Handler):
    """Tell choices to a listener; warnings go where they go without this handler."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self.say, self.said = say, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            if logging.lastResort is not None and not logging.getLogger().handlers:
                logging.lastResort.handle(record)
        elif text not in self.said:
            self.said.add(text)
            self.say(text)


def new_attempt() -> str:
    """Return a name for one run of a process that writes events."""
    return secrets.token_hex(8)


@dataclass(slots=True, frozen=True)
class Position:
    """How far a file of events was read.

    offset: bytes of its whole lines that were read. tail: their last bytes in hexadecimal, by which
    a file that took the place of the one that was read is recognised.
    """

    offset: int = 0
    tail: str = ""


class EventReader:
    """Read a growing file of events, each event once, from a position on.

    A read costs what was appended since the last one. A line that is still being written waits for
    its end. A file that was dropped and begun again, and so does not hold what was read, is read
    from its start. damaged: whole lines that were not events, left behind by killed writers.
    """

    def __init__(self, path: Path, position: Position | None = None) -> None:
        self.path = path
        self.position = position or Position()
        self.damaged = 0

    def read(self) -> list[Event]:
        """Return the events that were appended since the last read, from about `READ_BYTES` at
        most: a caller that must reach the end reads until the position stays.
        """
        events = []
        for line in self._next_block().splitlines():
            event = _parsed(line)
            if event is None:
                self.damaged += bool(line.strip())
            else:
                events.append(event)
        return events

    def skip_to_end(self) -> None:
        """Pass over the events that the file holds now."""
        while self._next_block():
            pass

    def _next_block(self) -> bytes:
        """Return the next whole lines, and move the position behind them."""
        try:
            if self.path.stat().st_size == self.position.offset:
                return b""
            file = self.path.open("rb")
        except FileNotFoundError:
            return b""
        with file:
            offset = self._start(file)
            file.seek(offset)
            block = file.read(READ_BYTES)
            if block and b"\n" not in block:
                block += file.readline()
        whole = block[: block.rfind(b"\n") + 1]
        if whole:
            self.position = Position(offset + len(whole), whole[-TAIL_BYTES:].hex())
        return whole

    def _start(self, file: IO[bytes]) -> int:
        """Return the offset to read from: 0 where the file is not the one that was read before."""
        tail = bytes.fromhex(self.position.tail)
        file.seek(self.position.offset - len(tail))
        return self.position.offset if file.read(len(tail)) == tail else 0


def read_events(path: Path, after_seq: int = 0) -> Iterator[Event]:
    """Yield the whole events of a file with a sequence number above `after_seq`; a torn line is
    skipped.
    """
    reader = EventReader(path)
    before = None
    while reader.position != before:
        before = reader.position
        yield from (event for event in reader.read() if event.seq > after_seq)


def _parsed(line: bytes) -> Event | None:
    """Return the event of a line, or None for a line that holds none."""
    try:
        return Event(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _end_torn_line(path: Path) -> None:
    """Close a line that a killed writer left open, so that the next event starts on its own
    line.
    """
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def json_safe(value: Any) -> Any:
    """Return a value as JSON has it, at every depth: numbers of numpy and torch become Python's, NaN
    and infinities become text, which strict readers take.
    """
    if isinstance(value, Mapping):
        return {key: json_safe(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
