"""The only way to run a phase: check, lock, run in a child process, gate, record.

The same call after a kill goes on where the phase stopped; after success it does nothing. The child
process keeps the memory, threads and crashes of one phase away from the next, and dies with its
parent.
"""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, DirectoryLock, atomic, record_dir
from agent_forge.checkpoint.lock import LOCK_NAME
from agent_forge.config import PhaseConfig
from agent_forge.core import ranks
from agent_forge.core.errors import (
    CheckpointError,
    ConfigError,
    PhaseError,
    StorageError,
)
from agent_forge.core.events import EventReader, new_attempt
from agent_forge.core.supervised import ATTEMPT_VARIABLE
from agent_forge.pipeline.catalogue import PACKAGE, phase_named
from agent_forge.pipeline.child import POLL_SECONDS, Listener, died, run_child
from agent_forge.pipeline.fits import fits
from agent_forge.pipeline.outcome import (
    EVENTS,
    JOB,
    OUTCOME,
    Outcome,
    differences,
    input_hash,
    read_job,
    read_outcome,
)

FOLLOW_WAIT_SECONDS = 60.0  # rank 0 checks its inputs before it begins
LOCK_WAIT_SECONDS = 3.0  # the worker of a killed run needs a moment to die


def run_phase(
    name: str, config: PhaseConfig, *, listener: Listener | None = None, resume: bool = True
) -> Outcome:
    """Run phase `name`, go on with it, or notice that it is done; return its outcome.

    resume: False first removes what an earlier run left at `config.out`, whatever its settings.

    Raises ConfigError when an earlier run there had other settings, CheckpointError for a missing
    or damaged source, StorageError when `out` cannot be written, LockedError when another process
    writes there. Failures inside the phase are in the outcome. Under torchrun rank 0 does all this,
    and the other ranks only train with it.
    """
    check_processes(name, config)
    sources = check_inputs(name, config, write_probe=ranks.rank() == 0)
    job: dict[str, Any] = {
        "phase": name,
        "config": asdict(config),
        "sources": [source.id for source in [*sources, *chain_base(config)]],
        "data": data_fingerprint([*config.data.text, *config.data.rows]),
        "parent_pid": os.getpid(),
        "attempt": os.environ.get(ATTEMPT_VARIABLE) or new_attempt(),
    }
    job["input_hash"] = digest = input_hash(name, job["config"], [*job["sources"], *job["data"]])
    record = record_dir(config.out)
    if ranks.rank():
        return _follow(name, digest, record, resume)
    with DirectoryLock(record, wait_seconds=LOCK_WAIT_SECONDS):
        if not resume:
            _drop(record, Path(config.out))
        earlier = read_outcome(record)
        if earlier is not None and _stands(earlier, digest):
            return earlier
        _refuse_other_settings(record, job)
        # The outcome of an earlier attempt must not be taken for this one's.
        (record / OUTCOME).unlink(missing_ok=True)
        atomic.write_json(record / JOB, job)
    events = EventReader(record / EVENTS)
    events.skip_to_end()
    processes = config.runtime.processes if phase_named(name).several_processes else 1
    exit_code, errors = run_child(record, listener, events, processes)
    outcome = read_outcome(record)
    if outcome is None or outcome.input_hash != digest:
        outcome = died(name, digest, exit_code, errors, record)
        outcome.attempt = job["attempt"]
        with contextlib.suppress(StorageError):  # the exit code then tells, as on a full disk
            outcome.save(record)
    return outcome


def chain_base(config: PhaseConfig) -> list[Checkpoint]:
    """Return the verified base of the chain that the gate compares with; [] where there is none."""
    return [checkpoint.open(config.gate.base)] if config.gate.enabled and config.gate.base else []


def check_processes(name: str, config: PhaseConfig) -> None:
    """Raise ConfigError where this phase, or this launch, cannot use the processes that are set."""
    processes = config.runtime.processes
    if ranks.size() > 1 and processes > 1:
        raise ConfigError(
            f"runtime.processes={processes} starts processes itself: leave it at 1 under torchrun"
        )
    if ranks.size() > 1 and not phase_named(name).several_processes:
        raise ConfigError(f"{name} does not train with several processes; run it without torchrun")


def _follow(name: str, digest: str, record: Path, resume: bool) -> Outcome:
    """Train with rank 0 once it has written its job, or notice that the phase is done already."""
    done = Outcome(phase=name, status="done", input_hash=digest)
    end = time.monotonic() + FOLLOW_WAIT_SECONDS
    while True:
        earlier = read_outcome(record)
        if resume and earlier is not None and _stands(earlier, digest):
            return done
        if earlier is None and _begun_with(record, digest):
            break
        if time.monotonic() > end:
            raise PhaseError(
                f"rank {ranks.rank()}: rank 0 began no {name} in {record}; do all see the "
                "same disk?"
            )
        time.sleep(POLL_SECONDS)
    done.exit_code, errors = run_child(record, None, EventReader(record / EVENTS), 1)
    if done.exit_code:
        done.status, done.message = "failed", " ".join(errors.strip().splitlines()[-1:])
    return done


def _begun_with(record: Path, digest: str) -> bool:
    job = read_job(record)
    return job is not None and bool(job["input_hash"] == digest)


def _drop(record: Path, out: Path) -> None:
    """Remove an earlier run of the phase that writes `out`, except the lock, which is in use."""
    shutil.rmtree(out, ignore_errors=True)
    for path in record.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(LOCK_NAME):
            path.unlink(missing_ok=True)


def check_inputs(name: str, config: PhaseConfig, *, write_probe: bool = True) -> list[Checkpoint]:
    """Check everything that can be checked before work starts, and return the verified sources.

    write_probe: False only reads permissions, and writes nothing.
    """
    check_settings(name, config)
    sources = checkpoint.expand(config.sources)
    if not sources and needs_source(name, config):
        raise ConfigError(
            f"{name} reads a checkpoint: give sources=[DIR] (the output of an earlier phase)"
        )
    fits(name, config, sources)
    out = Path(config.out)
    atomic.check_place(out)
    for source in sources:
        here, there = out.resolve(), source.stored.resolve()
        if here == there or here in there.parents or there in here.parents:
            raise ConfigError(
                f"out={config.out} is or holds a source; a phase never overwrites its parent"
            )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={config.out} is a file; name a directory")
    if out.is_dir() and any(out.iterdir()) and _written_by(out) != name:
        raise ConfigError(
            f"out={config.out} exists and was not written by {name}; name another directory"
        )
    if write_probe:
        check_writable(out.parent)
    else:
        place = nearest(out)
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise StorageError(
                f"cannot write below {place}; name a directory that you may write ({atomic.WHERE})"
            )
    return sources


def check_settings(name: str, config: PhaseConfig) -> None:
    """Check that the device, the gate's tasks and the data exist, which the fields' limits cannot.

    A phase may have a `check.py` with `check(config)`, for settings that only its libraries can
    judge. Raises ConfigError, or DataError for unreadable data.
    """
    from agent_forge.config import suites
    from agent_forge.config.limits import kinds_of_data
    from agent_forge.core import device, registry
    from agent_forge.data import rows, sources
    from agent_forge.data.documents import check_source

    if config.runtime.device not in ("auto", "cpu"):
        device.pick_device(config.runtime.device)
    for task in suites.expanded([*config.gate.tasks, *config.gate.chain])[0]:
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
    job = read_job(record_dir(out))
    return job["phase"] if job else ""


def needs_source(name: str, config: PhaseConfig) -> bool:
    """Return whether the phase reads a checkpoint; only the first one may begin from nothing."""
    asks = getattr(config, "starts_from_nothing", None)
    return phase_named(name).order > 1 if asks is None else not asks()


def check_writable(directory: Path) -> None:
    """Create `directory` if necessary and write a probe. Raises StorageError."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f"{atomic.TEMPORARY}probe-{os.getpid()}"
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise atomic.storage_error(error, directory, 0) from error
    if shutil.disk_usage(directory).free < 1 << 20:
        raise StorageError(
            f"{directory}: less than 1 MiB is free; free some space or write to another "
            f"disk ({atomic.WHERE})"
        )


def data_fingerprint(sources: Sequence[str]) -> list[str]:
    """Return one line per source of text or rows, which changes with the source's content.

    The line of a hub name depends on the name alone.
    """
    from agent_forge.data.documents import source_files

    lines = []
    for name in sources:
        digest = hashlib.sha256()
        for file in source_files(name):
            digest.update(f"{file.name} {atomic.sha256_file(file)}\n".encode())
        lines.append(f"{name} {digest.hexdigest()[:16]}")
    return lines


def _stands(outcome: Outcome, digest: str) -> bool:
    """Return whether this outcome ended the same job, and its outputs are still undamaged."""
    if outcome.status not in ("done", "rejected") or outcome.input_hash != digest:
        return False
    try:
        return bool(outcome.outputs) and all(checkpoint.open(path) for path in outcome.outputs)
    except CheckpointError:
        return False


def _refuse_other_settings(record: Path, job: Mapping[str, Any]) -> None:
    """Raise ConfigError with the differences when `record` belongs to another job than `job`.

    Jobs differ by settings, sources or data.
    """
    begun = read_job(record)
    if begun is None:
        if (record / JOB).exists():
            raise ConfigError(
                f"{record / JOB} is damaged, so what its results were made with is not known; drop "
                "them with --no-resume, or set out= to another directory"
            )
        return
    if begun["input_hash"] == job["input_hash"]:
        return
    if begun["phase"] != job["phase"]:
        raise ConfigError(
            f"{job['config']['out']} was begun by {begun['phase']}; set out= to another directory"
        )
    changed = differences(begun.get("config") or {}, job["config"])
    if begun.get("sources") != job["sources"]:
        changed.append("the content of its sources")
    if begun.get("data") != job["data"] and not any(
        text.startswith("data.text") for text in changed
    ):
        changed.append("the content of data.text or data.rows")
    raise ConfigError(
        f"{job['phase']}: {job['config']['out']} was begun with other settings "
        f"({'; '.join(changed)}); "
        "use those, or another out=, or --no-resume to drop it and start again"
    )
