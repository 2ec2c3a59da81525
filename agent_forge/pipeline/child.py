"""The child process of a phase: start it, pass its events and signals on, and say how it died.

Reads the record's `events.jsonl` while the worker appends to it; writes `stderr.log` beside it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import IO

from agent_forge.core import ranks
from agent_forge.core.errors import Interrupted, LockedError, StorageError
from agent_forge.core.events import Event, EventReader
from agent_forge.pipeline.outcome import Outcome

Listener = Callable[[Event], None]
POLL_SECONDS = 0.1
STDERR = "stderr.log"
# These signals stop a process on purpose; others are crashes.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)
# A worker that could not write its outcome leaves with one of these.
EXPECTED_EXITS = (LockedError.exit_code, StorageError.exit_code)
STOPPED_EXITS = (Interrupted.exit_code, 130)


def run_child(
    record: Path, listener: Listener | None, events: EventReader, processes: int
) -> tuple[int, str]:
    """Run the worker (or several) on record/job.json; pass events to `listener`, signals to it.

    Returns its exit code and its stderr, which is also kept as record/stderr.log.
    """
    command = [sys.executable, "-m", "agent_forge.pipeline.worker", str(record)]
    if processes > 1:
        command = [
            sys.executable,
            "-m",
            "agent_forge.pipeline.launch",
            str(record),
            str(processes),
            str(os.getpid()),
        ]
    # Errors go to a temporary file first, because the record's disk may be the one that is full.
    with tempfile.TemporaryFile() as errors:
        exit_code = watch_child(command, errors, events, listener)
        errors.seek(0)
        text = errors.read()
    if text and not ranks.rank():
        with contextlib.suppress(OSError):
            (record / STDERR).write_bytes(text)
    return exit_code, text.decode(errors="replace")


def watch_child(
    command: list[str], errors: IO[bytes], events: EventReader, listener: Listener | None
) -> int:
    """Run a command to its end; return its exit code.

    errors: takes its standard error. listener: gets the events that it appends.
    """
    # In a session of its own the child does not see a terminal's Ctrl-C; it is passed on once.
    child = subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.DEVNULL, stderr=errors
    )
    try:
        with _signals_to(child):
            while True:
                ended = child.poll() is not None
                while listener and (new := events.read()):
                    for event in new:
                        listener(event)
                if ended:
                    return child.returncode
                time.sleep(POLL_SECONDS)
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


@contextlib.contextmanager
def _signals_to(child: "subprocess.Popen[bytes]") -> Iterator[None]:
    """Pass Ctrl-C and SIGTERM on to the child while the context lasts.

    Python gives signals to the main thread alone. In another thread they are left to it, and the
    child ends with this process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        child.send_signal(number)

    previous = {
        number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def died(name: str, digest: str, exit_code: int, errors: str, record: Path) -> Outcome:
    """Return the outcome of a worker that ended without writing one."""
    last = " ".join(errors.strip().splitlines()[-1:])
    status, code, go_on = "failed", exit_code if exit_code > 0 else 1, ""
    saved = "; the same command goes on from its last saved state"
    if -exit_code in STOPPING:
        cause = f"was killed by {signal.Signals(-exit_code).name}"
        if -exit_code == signal.SIGKILL:
            cause += " (often the system running out of memory: lower the batch size)"
        status, code = "interrupted", 130 if -exit_code == signal.SIGINT else Interrupted.exit_code
        go_on = saved
    elif exit_code in STOPPED_EXITS:
        status, cause, go_on = "interrupted", "was stopped", saved
    elif exit_code < 0:
        cause = f"crashed with {signal.Signals(-exit_code).name} (see {record / STDERR})"
    elif exit_code in EXPECTED_EXITS:
        cause = f"stopped: {last.partition(': ')[2] or last}"
    else:
        cause = (
            f"ended with exit code {exit_code}: {last} (see {record / STDERR}); this is a defect"
        )
    return Outcome(
        phase=name,
        status=status,
        input_hash=digest,
        exit_code=code,
        message=f"{name} {cause}{go_on}",
    )
