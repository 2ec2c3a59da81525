"""The only door through which a phase runs: check, lock, run in a child process, gate, record.

The same call after a kill goes on where the phase stopped; after success it does nothing. A child process keeps one
phase's memory, threads and crashes away from the next, and dies with its parent.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import IO, Any

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, DirectoryLock, atomic, record_dir
from agent_forge.checkpoint.lock import LOCK_NAME
from agent_forge.config import PhaseConfig
from agent_forge.core import ranks
from agent_forge.core.errors import CheckpointError, ConfigError, Interrupted, LockedError, PhaseError, StorageError
from agent_forge.core.events import Event, read_events
from agent_forge.pipeline.catalogue import PACKAGE, phase_named
from agent_forge.pipeline.fits import fits
from agent_forge.pipeline.outcome import EVENTS, JOB, OUTCOME, Outcome, differences, input_hash, read_outcome

Listener = Callable[[Event], None]
POLL_SECONDS = 0.1
FOLLOW_WAIT_SECONDS = 60.0  # for rank 0 to check its inputs and begin
LOCK_WAIT_SECONDS = 3.0  # for the worker of a killed run to die
STDERR = "stderr.log"
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGHUP)  # signals that stop a process, not crashes
EXPECTED_EXITS = (LockedError.exit_code, StorageError.exit_code)  # of a worker that could not write its outcome


def run_phase(name: str, config: PhaseConfig, *, listener: Listener | None = None, resume: bool = True) -> Outcome:
    """Run phase `name`, or go on with it, or find it done; return its outcome.

    resume=False drops what an earlier run of other (or the same) settings left at `config.out`.
    Raises ConfigError when settings differ from those of an unfinished or finished run there, CheckpointError for a
    missing or damaged source, StorageError when `out` cannot be written, LockedError when another process writes there.
    Failures inside the phase are in the outcome. Under torchrun rank 0 does all this; the others only train with it.
    """
    check_processes(name, config)
    sources = check_inputs(name, config, write_probe=ranks.rank() == 0)
    job: dict[str, Any] = {
        "phase": name,
        "config": asdict(config),
        "sources": [source.id for source in [*sources, *chain_base(config)]],
        "data": data_fingerprint([*config.data.text, *config.data.rows]),
        "parent_pid": os.getpid(),
    }
    job["input_hash"] = wanted = input_hash(name, job["config"], [*job["sources"], *job["data"]])
    record = record_dir(config.out)
    if ranks.rank():
        return _follow(name, wanted, record, resume)
    with DirectoryLock(record, wait_seconds=LOCK_WAIT_SECONDS):
        if not resume:
            _drop(record, Path(config.out))
        found = read_outcome(record)
        if found is not None and _stands(found, wanted):
            return found
        _refuse_other_settings(record, job)
        (record / OUTCOME).unlink(missing_ok=True)  # what an earlier attempt said is no answer to this one
        atomic.write_json(record / JOB, job)
    started_seq = max((event.seq for event in read_events(record / EVENTS)), default=0)
    processes = config.runtime.processes if phase_named(name).several_processes else 1
    exit_code, errors = _run_child(record, listener, started_seq, processes)
    outcome = read_outcome(record)
    if outcome is None or outcome.input_hash != wanted:
        outcome = _died(name, wanted, exit_code, errors, record)
    return outcome


def chain_base(config: PhaseConfig) -> list[Checkpoint]:
    """Return the base of the chain that the gate compares with, verified; [] where none is named."""
    return [checkpoint.open(config.gate.base)] if config.gate.enabled and config.gate.base else []


def check_processes(name: str, config: PhaseConfig) -> None:
    """Raise ConfigError where several processes are asked for and this phase, or this launch, cannot use them."""
    asked = config.runtime.processes
    if ranks.size() > 1 and asked > 1:
        raise ConfigError(f"runtime.processes={asked} starts processes itself: leave it at 1 under torchrun")
    if ranks.size() > 1 and not phase_named(name).several_processes:
        raise ConfigError(f"{name} does not train with several processes; run it without torchrun")


def _follow(name: str, wanted: str, record: Path, resume: bool) -> Outcome:
    """Train with rank 0 once it has written its job; or find, as it does, that there is nothing to do."""
    done = Outcome(phase=name, status="done", input_hash=wanted)
    end = time.monotonic() + FOLLOW_WAIT_SECONDS
    while True:
        found = read_outcome(record)
        if resume and found is not None and _stands(found, wanted):
            return done
        if found is None and _begun_with(record, wanted):
            break
        if time.monotonic() > end:
            raise PhaseError(f"rank {ranks.rank()}: rank 0 began no {name} in {record}; do all see the same disk?")
        time.sleep(POLL_SECONDS)
    done.exit_code, errors = _run_child(record, None, 0, 1)
    if done.exit_code:
        done.status, done.message = "failed", " ".join(errors.strip().splitlines()[-1:])
    return done


def _begun_with(record: Path, wanted: str) -> bool:
    try:
        return bool(json.loads((record / JOB).read_text(encoding="utf-8"))["input_hash"] == wanted)
    except (OSError, ValueError, KeyError):
        return False


def _drop(record: Path, out: Path) -> None:
    """Remove an earlier run of the phase that writes `out`, but for the lock that is held."""
    shutil.rmtree(out, ignore_errors=True)
    for path in record.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(LOCK_NAME):
            path.unlink(missing_ok=True)


def check_inputs(name: str, config: PhaseConfig, *, write_probe: bool = True) -> list[Checkpoint]:
    """Check everything that can be checked before work starts, and return the verified sources.

    write_probe=False looks at permissions only, and writes nothing.
    """
    check_settings(name, config)
    sources = checkpoint.expand(config.sources)
    if not sources and needs_source(name, config):
        raise ConfigError(f"{name} reads a checkpoint: give sources=[DIR] (the output of an earlier phase)")
    fits(name, config, sources)
    out = Path(config.out)
    atomic.check_place(out)
    for source in sources:
        here, there = out.resolve(), source.path.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise ConfigError(f"out={config.out} is or holds a source; a phase never overwrites its parent")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={config.out} is a file; name a directory")
    if out.is_dir() and any(out.iterdir()) and _written_by(out) != name:
        raise ConfigError(f"out={config.out} exists and was not written by {name}; name another directory")
    if write_probe:
        check_writable(out.parent)
    else:
        place = nearest(out)
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise StorageError(f"cannot write below {place}; name a directory that you may write ({atomic.WHERE})")
    return sources


def check_settings(name: str, config: PhaseConfig) -> None:
    """Check what the limits beside the fields cannot: that the device, the gate's tasks and the data are there.

    A phase room may hold `check.py` with `check(config)`, for settings that only its libraries can judge.
    Raises ConfigError, or DataError for unreadable data.
    """
    from agent_forge.config.limits import kinds_of_data
    from agent_forge.core import device, registry
    from agent_forge.data import rows, sources
    from agent_forge.data.documents import check_source

    if config.runtime.device not in ("auto", "cpu"):
        device.pick_device(config.runtime.device)
    for task in [*config.gate.tasks, *config.gate.chain]:
        registry.load("agent_forge.evaluate.tasks", task, "gate task")
    for text in config.data.text:
        check_source(text, config.data.encoding, config.data.ignore_keys)
    for row_source in config.data.rows:
        rows.check_source(row_source, config.data.encoding, config.data.ignore_keys)
    for setting, kind in kinds_of_data(config):
        sources.check_kind(setting, kind, config.data)
    room = f"{PACKAGE}.{name}"
    if "check" in registry.names(room):
        registry.load(room, "check", "phase module").check(config)


def nearest(path: Path) -> Path:
    """Return `path`, or the nearest of its parents that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _written_by(out: Path) -> str:
    """Return the phase whose record lies beside `out`, or ""."""
    try:
        return str(json.loads((record_dir(out) / JOB).read_text(encoding="utf-8"))["phase"])
    except (OSError, ValueError, KeyError):
        return ""


def needs_source(name: str, config: PhaseConfig) -> bool:
    """Say whether the phase reads a checkpoint; only the first one may begin from nothing."""
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
        raise atomic.storage_error(error, directory, 0) from error
    if shutil.disk_usage(directory).free < 1 << 20:
        raise StorageError(
            f"{directory}: less than 1 MiB is free; free some space or write to another disk ({atomic.WHERE})"
        )


def data_fingerprint(sources: Sequence[str]) -> list[str]:
    """Return a line for each source of text or rows that changes when its content does; hub names stand for themselves."""
    from agent_forge.data.documents import source_files

    lines = []
    for name in sources:
        digest = hashlib.sha256()
        for file in source_files(name):
            digest.update(f"{file.name} {atomic.sha256_file(file)}\n".encode())
        lines.append(f"{name} {digest.hexdigest()[:16]}")
    return lines


def _stands(outcome: Outcome, wanted: str) -> bool:
    """Say whether this is the end of the same job and its outputs are still there and undamaged."""
    if outcome.status not in ("done", "rejected") or outcome.input_hash != wanted:
        return False
    try:
        return bool(outcome.outputs) and all(checkpoint.open(path) for path in outcome.outputs)
    except CheckpointError:
        return False


def _refuse_other_settings(record: Path, job: Mapping[str, Any]) -> None:
    """Raise ConfigError with a diff when `record` was begun with other settings, sources or data than `job` has."""
    try:
        begun = json.loads((record / JOB).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return
    if begun["input_hash"] == job["input_hash"]:
        return
    if begun["phase"] != job["phase"]:
        raise ConfigError(f"{job['config']['out']} was begun by {begun['phase']}; set out= to another directory")
    changed = differences(begun["config"], job["config"])
    if begun["sources"] != job["sources"]:
        changed.append("the content of its sources")
    if begun.get("data") != job["data"] and not any(text.startswith("data.text") for text in changed):
        changed.append("the content of data.text or data.rows")
    raise ConfigError(
        f"{job['phase']}: {job['config']['out']} was begun with other settings ({'; '.join(changed)}); "
        "use those, or another out=, or --no-resume to drop it and start again"
    )


def _run_child(record: Path, listener: Listener | None, after_seq: int, processes: int) -> tuple[int, str]:
    """Run the worker (or several) on record/job.json, hand its events to `listener`, pass signals on.

    Returns its exit code and what it wrote on stderr, which is also kept as record/stderr.log.
    """
    command = [sys.executable, "-m", "agent_forge.pipeline.worker", str(record)]
    if processes > 1:
        command = [sys.executable, "-m", "agent_forge.pipeline.launch", str(record), str(processes), str(os.getpid())]
    # Errors go to a temporary file first: the disk of the record may be the one that is full.
    with tempfile.TemporaryFile() as errors:
        exit_code = _watch_child(command, errors, record, listener, after_seq)
        errors.seek(0)
        text = errors.read()
    if text and not ranks.rank():
        with contextlib.suppress(OSError):
            (record / STDERR).write_bytes(text)
    return exit_code, text.decode(errors="replace")


def _watch_child(command: list[str], errors: IO[bytes], record: Path, listener: Listener | None, after_seq: int) -> int:
    # A session of its own: a terminal's Ctrl-C reaches only us, and we pass it on exactly once.
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


def _died(name: str, wanted: str, exit_code: int, errors: str, record: Path) -> Outcome:
    """Describe a worker that ended without an outcome of its own."""
    last = " ".join(errors.strip().splitlines()[-1:])
    status, code, go_on = "failed", exit_code if exit_code > 0 else 1, ""
    if -exit_code in STOPPING:
        cause = f"was killed by {signal.Signals(-exit_code).name}"
        if -exit_code == signal.SIGKILL:
            cause += " (often the system running out of memory: lower the batch size)"
        status, code = "interrupted", 130 if -exit_code == signal.SIGINT else Interrupted.exit_code
        go_on = "; the same command goes on from its last saved state"
    elif exit_code < 0:
        cause = f"crashed with {signal.Signals(-exit_code).name} (see {record / STDERR})"
    elif exit_code in EXPECTED_EXITS:
        cause = f"stopped: {last.partition(': ')[2] or last}"
    else:
        cause = f"ended with exit code {exit_code}: {last} (see {record / STDERR}); this is a defect"
    return Outcome(phase=name, status=status, input_hash=wanted, exit_code=code, message=f"{name} {cause}{go_on}")
