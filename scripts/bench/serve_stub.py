"""A job without work: it takes the arguments of `forge PHASE`, and writes a record like a worker.

    python -S scripts/bench/serve_stub.py train out=DIR steps=5 pause=0.1 end=done

Settings: steps (events), pause (seconds between them), end (done, rejected, failed, crash, or hang
until it is to stop), stubborn (ignores SIGTERM). It counts on from the last event when it is
started again, as a phase does. It imports nothing but the standard library, so that a thousand of
them cost little, and knows the forms of the record by itself: job.json, events.jsonl, outcome.json,
the lock, and the exit file.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

INTERRUPTED = 75
CODES = {"done": 0, "rejected": 3, "failed": 1, "interrupted": INTERRUPTED}


def main(arguments: list[str]) -> int:
    """Count to `steps`; return the exit code that forge would."""
    settings = dict(part.split("=", 1) for part in arguments[1:] if "=" in part)
    out = Path(settings["out"].strip("'"))
    stop: list[int] = []
    if settings.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    record = out.parent / ".forge" / out.name
    record.mkdir(parents=True, exist_ok=True)
    with (record / ".forge.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _run(arguments[0], record, settings, stop)


def _run(phase: str, record: Path, settings: dict[str, str], stop: list[int]) -> int:
    attempt = os.environ["FORGE_ATTEMPT"]
    (record / "outcome.json").unlink(missing_ok=True)
    job = {"phase": phase, "config": {}, "input_hash": "0", "parent_pid": os.getpid()}
    _write(record / "job.json", {**job, "attempt": attempt})
    steps, pause = int(settings.get("steps", 5)), float(settings.get("pause", 0))
    with Events(record / "events.jsonl", phase, attempt) as events:
        events.add("start", message="stub")
        status = ""
        for step in range(events.last_step + 1, steps + 1):
            if stop:
                status = "interrupted"
                break
            events.add("progress", stage="count", step=step, total=steps, metrics={"value": step})
            time.sleep(pause)
        status = status or _end(settings.get("end", "done"), stop)
        message = "" if status == "done" else f"the stub was to be {status}"
        outcome = {"phase": phase, "status": status, "input_hash": "0", "message": message}
        _write(
            record / "outcome.json", {**outcome, "attempt": attempt, "exit_code": CODES[status]}
        )  # fmt: skip
        if status in ("done", "rejected"):
            events.add("complete", metrics={"status": status})
        else:
            events.add("error", message=message)
    return CODES[status]


def _end(kind: str, stop: list[int]) -> str:
    """Return how the stub ends, where it does not die or wait for ever."""
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while kind == "hang" and not stop:
        time.sleep(0.02)
    return "interrupted" if kind == "hang" else kind


class Events:
    """Appends events to a file, numbered on from those that it holds."""

    def __init__(self, path: Path, phase: str, attempt: str) -> None:
        self.phase, self.attempt = phase, attempt
        text = path.read_text() if path.exists() else ""
        whole = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        self.seq = max((one["seq"] for one in whole), default=0)
        self.last_step = max((one.get("step", 0) for one in whole), default=0)
        self.file = path.open("a")
        if text and not text.endswith("\n"):
            self.file.write("\n")

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def add(self, kind: str, **fields: Any) -> None:
        """Append one event."""
        self.seq += 1
        event = {"seq": self.seq, "time": time.time(), "kind": kind, "phase": self.phase}
        self.file.write(json.dumps({**event, **fields, "attempt": self.attempt}) + "\n")
        self.file.flush()


def _write(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def claim_exit_file() -> Path | None:
    """Return the file for the exit code, where a supervisor wants one."""
    name = os.environ.pop("FORGE_EXIT_FILE", "")
    return Path(name) if name else None


def leave_exit(path: Path | None, code: int) -> None:
    """Write the exit code."""
    if path is not None:
        path.write_text(f"{code}\n")


if __name__ == "__main__":
    exit_file = claim_exit_file()
    code = main(sys.argv[1:])
    leave_exit(exit_file, code)
    sys.exit(code)
