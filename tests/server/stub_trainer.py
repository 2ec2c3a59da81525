"""A `forge` for the dashboard's tests: falling losses with a NaN in them, gates, a run-all.

Settings that a client may send steer it. train.steps: steps of a phase; gate.samples: milliseconds
between them; seed: how it ends, 0 well, 1 rejected by its gate, 2 failed. The tenth step of every
phase writes a loss that is not a number. In a run-all, the settings of bitnet hold for each phase. An
export writes one short file.
"""

import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import DirectoryLock, atomic, record_dir
from agent_forge.core.errors import Interrupted
from agent_forge.core.events import EventLog, read_events
from agent_forge.core.supervised import claim_exit_file, leave_exit
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.outcome import EVENTS, JOB, OUTCOME, Outcome, read_outcome

GAP = 10
STAGES = ("warm up", "train")


def main(arguments: list[str]) -> int:
    """Run one phase, or all; return the exit code that forge would."""
    command = arguments[0]
    settings = dict(part.split("=", 1) for part in arguments[1:] if "=" in part)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    if command == "export":
        place = Path(arguments[arguments.index("--out") + 1])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"GGUF")
        return 0
    if command != "run-all":
        return run_phase(command, record_dir(Path(settings["out"].strip("'"))), settings, stop)
    run = Path(settings["run_dir"].strip("'"))
    own = {key.removeprefix("bitnet."): value for key, value in settings.items()}
    for number, name in enumerate(phases(), start=1):
        record = run / ".forge" / f"{number}-{name}"
        known = read_outcome(record)
        if known is not None and known.status == "done":
            continue
        ends_here = name == "bitnet" or own.get("seed", "0") == "0"
        code = run_phase(name, record, own if ends_here else {**own, "seed": "0"}, stop)
        if code:
            return code
    return 0


def run_phase(phase: str, record: Path, settings: dict[str, str], stop: list[int]) -> int:
    """Write the record of one phase."""
    steps, pause = int(settings.get("train.steps", 12)), int(settings.get("gate.samples", 0)) / 1000
    end = ("done", "rejected", "failed")[int(settings.get("seed", 0))]
    attempt = os.environ["FORGE_ATTEMPT"]
    record.mkdir(parents=True, exist_ok=True)
    with DirectoryLock(record, wait_seconds=3.0):
        (record / OUTCOME).unlink(missing_ok=True)
        job = {"phase": phase, "config": {}, "input_hash": "0", "attempt": attempt}
        atomic.write_json(record / JOB, job)
        begun = sum(event.kind == "progress" for event in read_events(record / EVENTS))
        events = EventLog(record / EVENTS, phase, attempt=attempt, interval_seconds=0.0)
        events.emit("start", message=f"{phase} begins")
        outcome = Outcome(phase=phase, status="done", input_hash="0", attempt=attempt)
        for number in range(begun, steps):
            if stop:
                outcome.status, outcome.exit_code = "interrupted", Interrupted.exit_code
                break
            tell(events, number, steps)
            time.sleep(pause)
        else:
            finish(phase, end, events, outcome)
        outcome.save(record)
        kind = "complete" if outcome.status in ("done", "rejected") else "error"
        summary = outcome.report.get("summary", outcome.message)
        events.emit(kind, message=summary, metrics={"status": outcome.status})
        events.close()
    return outcome.exit_code


def tell(events: EventLog, number: int, steps: int) -> None:
    """Write one step: the first third is one stage, the rest another."""
    border = max(1, steps // 3)
    stage = number >= border
    step, total = (number - border + 1, steps - border) if stage else (number + 1, border)
    wave = 0.15 * math.sin(number * 1.7)
    loss = math.nan if number == GAP else 2.1 + 4.2 * math.exp(-4 * number / steps) + wave
    shown: dict[str, Any] = {"loss": loss, "tokens_per_second": 1200 + 90 * math.sin(number)}
    if events.phase == "evomerge":
        shown = {"fitness": 0.2 * number / steps, "population": population(number)}
    events.progress(STAGES[stage], step, total, shown)


def population(number: int) -> list[dict[str, Any]]:
    """Return four members."""
    methods = ("task_arithmetic", "ties", "linear", "dare")
    return [
        {"#": rank + 1, "technique": methods[(rank + number // 3) % 4], "from": "mutation",
         "fitness": round(0.01 * (number + 4 - rank), 4), "text": 0.01, "tools": -0.02}
        for rank in range(4)
    ]  # fmt: skip


def finish(phase: str, end: str, events: EventLog, outcome: Outcome) -> None:
    """Judge: the figures of a gate, and what came of it."""
    passed = end != "rejected"
    retention = {"ratio": 0.984 if passed else 0.87, "low": 0.968 if passed else 0.84,
                 "high": 0.997 if passed else 0.9, "limit": 0.95, "gated": True}  # fmt: skip
    verdict = {
        "passed": passed,
        "reasons": [] if passed else ["tools: keeps 87% [84, 90] of its parent, needs 95%"],
        "retentions": {"tools": {"task": "tools", **retention},
                       "text": {"task": "text", **retention, "ratio": 0.991}},
        "chain": {},
        "scores": {
            "text": {"value": 1.92, "low": 1.88, "high": 1.97, "metric": "bits per byte", "n": 64},
            "tools": {"value": 0.61, "low": 0.55, "high": 0.67, "metric": "exact match", "n": 64},
        },
        "parent_scores": {"text": {"value": 1.9}, "tools": {"value": 0.62}},
    }  # fmt: skip
    events.emit("gate", message="passed" if passed else "rejected", metrics=verdict)
    outcome.verdict, outcome.seconds, outcome.deployable_bytes = verdict, 12.5, 1_420_000
    outcome.tokens_per_second, outcome.peak_memory_bytes = 1234.0, 512_000_000
    summary = f"{phase}: 1.92 bits per byte; keeps 98.4% of its skill with tools."
    outcome.report = {"summary": summary, "metrics": {"text_bits_per_byte": verdict["scores"]}}
    if end == "rejected":
        outcome.status, outcome.exit_code = "rejected", 3
        outcome.message = verdict["reasons"][0]
    elif end == "failed":
        outcome.status, outcome.exit_code = "failed", 1
        outcome.message = "train.steps: the stub was to fail"


if __name__ == "__main__":
    exit_file = claim_exit_file()
    code = main(sys.argv[1:])
    leave_exit(exit_file, code)
    sys.exit(code)
