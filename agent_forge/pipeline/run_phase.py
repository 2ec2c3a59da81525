"""The only door through which a phase runs: check, lock, run in a child process, gate, record.

The same call after a kill goes on where the phase stopped; after success it does nothing. A child process keeps one
phase's memory, threads and crashes away from the next, and dies with its parent.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, DirectoryLock, atomic, record_dir
from agent_forge.config import PhaseConfig
from agent_forge.core.errors import CheckpointError, ConfigError, StorageError
from agent_forge.core.events import Event, read_events
from agent_forge.pipeline.outcome import EVENTS, JOB, Outcome, differences, input_hash, read_outcome

Listener = Callable[[Event], None]
POLL_SECONDS = 0.1


def run_phase(name: str, config: PhaseConfig, *, listener: Listener | None = None, resume: bool = True) -> Outcome:
    """Run phase `name`, or go on with it, or find it done; return its outcome.

    resume=False drops what an earlier run of other (or the same) settings left at `config.out`.
    Raises ConfigError when settings differ from those of an unfinished or finished run there, CheckpointError for a
    missing or damaged source, StorageError when `out` cannot be written. Failures inside the phase are in the outcome.
    """
    sources = check_inputs(name, config)
    settings = asdict(config)
    wanted = input_hash(name, settings, [source.id for source in sources])
    record = record_dir(config.out)
    if not resume:
        with DirectoryLock(record):
            pass  # raises when somebody is writing there
        shutil.rmtree(record, ignore_errors=True)
        shutil.rmtree(config.out, ignore_errors=True)
    found = read_outcome(record)
    if found is not None and found.status in ("done", "rejected") and found.input_hash == wanted and _whole(found):
        return found
    _refuse_other_settings(record, name, settings, wanted, sources)
    atomic.write_json(
        record / JOB,
        {
            "phase": name,
            "config": settings,
            "input_hash": wanted,
            "sources": [source.id for source in sources],
            "parent_pid": os.getpid(),
        },
    )
    started_seq = max((event.seq for event in read_events(record / EVENTS)), default=0)
    exit_code = _run_child(record, listener, started_seq)
    outcome = read_outcome(record)
    if outcome is None or outcome.input_hash != wanted or (exit_code and outcome.status in ("done", "rejected")):
        outcome = _died(name, wanted, exit_code, record)
    return outcome


def check_inputs(name: str, config: PhaseConfig, *, write_probe: bool = True) -> list[Checkpoint]:
    """Check everything that can be checked before work starts, and return the verified sources.

    write_probe=False looks at permissions only, and writes nothing.
    """
    from agent_forge.core import registry

    for task in config.gate.tasks:
        registry.load("agent_forge.evaluate.tasks", task, "gate task")
    sources = checkpoint.expand(config.sources)
    if not sources and needs_source(name, config):
        raise ConfigError(f"{name} reads a checkpoint: give sources=[DIR] (the output of an earlier phase)")
    out = Path(config.out)
    for source in sources:
        if out.resolve() == source.path.resolve():
            raise ConfigError(f"out={config.out} is also a source; a phase never overwrites its parent")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={config.out} is a file; name a directory")
    if out.is_dir() and any(out.iterdir()) and not (record_dir(out) / JOB).exists():
        raise ConfigError(f"out={config.out} exists and was not written by this phase; name another directory")
    if write_probe:
        check_writable(out.parent)
    else:
        place = next(path for path in (out, *out.absolute().parents) if path.exists())
        if not os.access(place, os.W_OK):
            raise StorageError(f"cannot write below {place}; set out= to a directory you may write")
    return sources


def needs_source(name: str, config: PhaseConfig) -> bool:
    """Say whether the phase reads a checkpoint; only the first one may begin from nothing."""
    from agent_forge.pipeline.catalogue import phase_named

    asks = getattr(config, "starts_from_nothing", None)
    return phase_named(name).order > 1 if asks is None else not asks()


def check_writable(directory: Path) -> None:
    """Create `directory` when needed and write a probe. Raises StorageError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f"{atomic.TEMPORARY}probe-{os.getpid()}"
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise atomic.storage_error(error, directory, 1) from error
    if shutil.disk_usage(directory).free < 1 << 20:
        raise StorageError(f"{directory}: less than 1 MiB is free; free some space or set out= to another disk")


def _whole(outcome: Outcome) -> bool:
    """Say whether a finished phase's outputs are still there and undamaged."""
    try:
        return bool(outcome.outputs) and all(checkpoint.open(path) for path in outcome.outputs)
    except CheckpointError:
        return False


def _refuse_other_settings(
    record: Path, name: str, settings: dict[str, Any], wanted: str, sources: Sequence[Checkpoint]
) -> None:
    try:
        job = json.loads((record / JOB).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if job["input_hash"] == wanted:
        return
    changed = differences(job["config"], settings)
    if job["sources"] != [source.id for source in sources]:
        changed.append("the content of its sources")
    raise ConfigError(
        f"{name}: {settings['out']} was begun with other settings ({'; '.join(changed)}); "
        "use those, or another out=, or --no-resume to drop it and start again"
    )


def _run_child(record: Path, listener: Listener | None, after_seq: int) -> int:
    """Run the worker on record/job.json, hand its events to `listener`, forward signals once; return its exit code."""
    command = [sys.executable, "-m", "agent_forge.pipeline.worker", str(record)]
    # A session of its own: a terminal's Ctrl-C reaches only us, and we pass it on exactly once.
    with (record / "stderr.log").open("wb") as errors:
        child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL, stderr=errors)

    def forward(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            ended = child.poll() is not None
            for event in read_events(record / EVENTS, after_seq) if listener else ():
                after_seq = event.seq
                listener(event)  # type: ignore[misc]
            if ended:
                return child.returncode
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if child.poll() is None:
            child.kill()
            child.wait()


def _died(name: str, wanted: str, exit_code: int, record: Path) -> Outcome:
    """Describe a worker that ended without an outcome of its own."""
    log = record / "stderr.log"
    tail = log.read_text(errors="replace").strip().splitlines()[-1:]
    if exit_code < 0:
        cause = f"was killed by {signal.Signals(-exit_code).name}"
        if -exit_code == signal.SIGKILL:
            cause += " (often the system running out of memory: lower the batch size)"
        status, code = "interrupted", 130 if -exit_code == signal.SIGINT else 75
    else:
        cause, status, code = (
            f"ended with exit code {exit_code}: {' '.join(tail)} (see {log})",
            "failed",
            exit_code or 1,
        )
    return Outcome(
        phase=name,
        status=status,
        input_hash=wanted,
        exit_code=code,
        message=f"{name} {cause}; the same command goes on from its last saved state",
    )
