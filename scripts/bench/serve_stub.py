"""A job without work: it takes the arguments of `forge PHASE`, and writes a record like a worker.

Settings: steps (events), pause (seconds between them), end (done, rejected, failed, crash, or hang
until it is to stop), stubborn (ignores SIGTERM). It counts on from the last event when it is
started again, as a phase does.
"""

import os
import signal
import sys
import time
from pathlib import Path

from agent_forge.checkpoint import DirectoryLock, atomic, record_dir
from agent_forge.core.errors import Interrupted
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.supervised import claim_exit_file, leave_exit
from agent_forge.pipeline.outcome import EVENTS, JOB, OUTCOME, Outcome


def main(arguments: list[str]) -> int:
    """Count to `steps`; return the exit code that forge would."""
    settings = dict(part.split("=", 1) for part in arguments[1:] if "=" in part)
    phase, out = arguments[0], Path(settings["out"].strip("'"))
    steps, pause = int(settings.get("steps", 5)), float(settings.get("pause", 0))
    stop: list[int] = []
    if settings.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    record, attempt = record_dir(out), os.environ["FORGE_ATTEMPT"]
    with DirectoryLock(record, wait_seconds=3.0):
        (record / OUTCOME).unlink(missing_ok=True)
        job = {"phase": phase, "config": {}, "input_hash": "0", "attempt": attempt}
        atomic.write_json(record / JOB, job)
        begun = max(
            (e.step for e in read_events(record / EVENTS) if e.kind == "progress"), default=0
        )
        events = EventLog(record / EVENTS, phase, attempt=attempt, interval_seconds=0.0)
        events.emit("start", message="stub")
        outcome = Outcome(phase=phase, status="done", input_hash="0", attempt=attempt)
        for step in range(begun + 1, steps + 1):
            if stop:
                _interrupt(outcome)
                break
            events.progress("count", step, steps, {"value": step})
            time.sleep(pause)
        else:
            _end(settings.get("end", "done"), outcome, stop)
        outcome.save(record)
        if outcome.status in ("done", "rejected"):
            events.emit("complete", metrics={"status": outcome.status})
        else:
            events.emit("error", message=outcome.message)
        events.close()
    return outcome.exit_code


def _interrupt(outcome: Outcome) -> None:
    outcome.status, outcome.exit_code = "interrupted", Interrupted.exit_code
    outcome.message = "the stub was stopped"


def _end(kind: str, outcome: Outcome, stop: list[int]) -> None:
    if kind == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while kind == "hang" and not stop:
        time.sleep(0.02)
    if kind == "hang":
        _interrupt(outcome)
    elif kind != "done":
        outcome.status, outcome.exit_code = kind, 3 if kind == "rejected" else 1
        outcome.message = f"the stub was to be {kind}"


if __name__ == "__main__":
    exit_file = claim_exit_file()
    code = main(sys.argv[1:])
    leave_exit(exit_file, code)
    sys.exit(code)
