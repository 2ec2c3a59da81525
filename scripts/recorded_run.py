"""The default run as it was recorded: outcomes and events of all eight phases, thinned.

Pictures of the dashboard and its tests in a browser need a run with real figures, and the default
run takes a quarter of an hour. recorded_run.json is one of commit 5326dd4f; long tables
are cut to their first rows, and two of three points of a stage are left out. Called like forge,

    python -m scripts.recorded_run run-all run_dir=DIR

writes the phases before STOPS_IN, the first half of that one, and then waits until it is stopped:
a run in progress for a server to show.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import DirectoryLock, atomic
from agent_forge.core.errors import Interrupted
from agent_forge.core.supervised import claim_exit_file, leave_exit
from agent_forge.pipeline.outcome import EVENTS, JOB, Outcome

RECORDING = Path(__file__).with_name("recorded_run.json")
STOPS_IN = "train"
FIELDS = ("time", "kind", "stage", "step", "total", "message", "metrics")
LATE_SECONDS = 20.0  # how long before now the last event that is written was


def phases() -> list[dict[str, Any]]:
    """Return {"record", "outcome", "events"} of each phase, in order."""
    listed: list[dict[str, Any]] = json.loads(RECORDING.read_text(encoding="utf-8"))["phases"]
    return listed


def write(run_dir: Path) -> None:
    """Write the records of the whole run below `run_dir`."""
    for phase in phases():
        _write_phase(run_dir / ".forge" / phase["record"], phase, phase["events"], "recorded", 0.0)


def _write_phase(
    record: Path, phase: dict[str, Any], rows: list[list[Any]], attempt: str, begun: float
) -> None:
    """Write a phase with some of its events, and its outcome where these are all."""
    record.mkdir(parents=True, exist_ok=True)
    outcome = phase["outcome"]
    job = {
        "phase": outcome["phase"], "config": {}, "input_hash": outcome["input_hash"],
        "attempt": attempt, "parent_pid": os.getpid(),
    }  # fmt: skip
    atomic.write_json(record / JOB, job)
    lines = []
    for number, row in enumerate(rows, start=1):
        event = dict(zip(FIELDS, row, strict=True))
        event |= {"time": begun + event["time"], "phase": outcome["phase"], "seq": number}
        if event["kind"] == "gate":
            event["metrics"] = outcome["verdict"]
        lines.append(json.dumps({**event, "attempt": attempt}) + "\n")
    (record / EVENTS).write_text("".join(lines), encoding="utf-8")
    if len(rows) == len(phase["events"]):
        Outcome(**outcome, attempt=attempt).save(record)


def play(run_dir: Path, attempt: str) -> int:
    """Write a run that is under way, and wait; return the exit code of an interrupted one."""
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    recorded = phases()
    names = [phase["outcome"]["phase"] for phase in recorded]
    last = names.index(STOPS_IN)
    half = recorded[last]["events"][: len(recorded[last]["events"]) // 2]
    begun = time.time() - half[-1][0] - LATE_SECONDS
    with DirectoryLock(run_dir / ".forge", wait_seconds=3.0):
        for number, phase in enumerate(recorded[: last + 1]):
            rows = half if number == last else phase["events"]
            place = run_dir / ".forge" / phase["record"]
            _write_phase(place, phase, rows, attempt, begun)
        while not stop:
            time.sleep(0.05)
    return Interrupted.exit_code


def main() -> int:
    """Play a run, as a service starts forge."""
    settings = dict(part.split("=", 1) for part in sys.argv[2:] if "=" in part)
    exit_file = claim_exit_file()
    code = play(Path(settings["run_dir"].strip("'")), os.environ["FORGE_ATTEMPT"])
    leave_exit(exit_file, code)
    return code


if __name__ == "__main__":
    sys.exit(main())
