"""The child process of run_phase: run one phase from job.json, gate it, write outcome.json.

Both files are in the phase's record directory. Under torchrun there are several workers: rank 0
does everything that a single worker does, and the others only train with it. They take no lock, run
no gate, and write and print nothing.
"""

import contextlib
import errno
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint import Checkpoint, DirectoryLock, Workspace, atomic
from agent_forge.config import Phase, PhaseConfig, Report
from agent_forge.config.compose import to_typed
from agent_forge.core import device, ranks, registry
from agent_forge.core.errors import ForgeError, Interrupted, LockedError, PhaseError, StorageError
from agent_forge.core.events import EventLog, choices_said
from agent_forge.core.lifetime import die_with_parent, give_way
from agent_forge.phases import PhaseRun
from agent_forge.pipeline.catalogue import PACKAGE, phase_named
from agent_forge.pipeline.outcome import EVENTS, JOB, Outcome

LOCK_WAIT_SECONDS = 3.0  # the worker of a killed run needs a moment to die
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def main(record: Path) -> int:
    """Run the job in `record`; return the exit code."""
    job = json.loads((record / JOB).read_text(encoding="utf-8"))
    if ranks.rank():
        return _follow(job)
    die_with_parent(os.getppid() if ranks.size() > 1 else job["parent_pid"])
    started = time.monotonic()
    outcome = Outcome(
        phase=job["phase"], status="failed", input_hash=job["input_hash"], attempt=job["attempt"]
    )
    try:
        with DirectoryLock(record, wait_seconds=LOCK_WAIT_SECONDS):
            events = EventLog(record / EVENTS, job["phase"], attempt=job["attempt"])
            try:
                with choices_said(events.message):
                    _run(job, events, outcome)
            except MemoryError as error:
                raise PhaseError(
                    f"{job['phase']}: out of memory ({error}); lower the batch rows or length"
                ) from error
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise atomic.storage_error(error, Path(error.filename or record), 0) from error
                raise
            except RuntimeError as error:
                if "out of memory" in str(error) or "can't allocate memory" in str(error):
                    raise PhaseError(
                        f"{job['phase']}: out of memory; lower the batch rows or length"
                    ) from error
                raise
            finally:
                _close(outcome, record, events, started)
    except ForgeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return _failed(outcome, record, error)
    return outcome.exit_code


def _follow(job: dict[str, Any]) -> int:
    """Train with rank 0; return the exit code. An error is one line on stderr with the rank."""
    die_with_parent(os.getppid())
    try:
        phase, config, sources, out = _prepared(job)
        _work(phase, PhaseRun(config, sources, out, EventLog(None, phase.name)))
    except ForgeError as error:
        print(f"rank {ranks.rank()}: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _prepared(job: dict[str, Any]) -> tuple[Phase, PhaseConfig, list[Checkpoint], Workspace]:
    phase = phase_named(job["phase"])
    config: PhaseConfig = to_typed(job["config"], phase.config, phase.name)
    if config.runtime.background:
        give_way()
    import torch  # seconds of work, which background work does in the background

    device.set_threads(config.runtime.threads)
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    sources = checkpoint.expand(config.sources, verify=False)
    out = Workspace(
        config.out, phase=phase.name, seed=config.seed, config=config, parents=sources,
        rank=ranks.rank(), meet=_barrier(config),
    )  # fmt: skip
    out.save_every_seconds = config.runtime.save_every_seconds
    out.listen_for_signals()
    return phase, config, sources, out


def _barrier(config: PhaseConfig) -> Callable[[], None]:
    """Return a function in which the processes of a run wait for one another."""
    if ranks.size() == 1:
        return lambda: None
    from agent_forge.learn.distribution import World, barrier_for_long_work

    return barrier_for_long_work(World(device.pick_device(config.runtime.device)))


def _work(phase: Phase, run: PhaseRun[PhaseConfig]) -> Report:
    """Run the phase itself."""
    room = registry.load(f"{PACKAGE}.{phase.name}", "run", "phase module")
    try:
        report: Report = room.run(run)
    finally:
        # After an error too: a group that is still there when Python ends can abort the process.
        if ranks.size() > 1:
            from agent_forge.learn import distribution

            distribution.leave()
    if not report.outputs:
        raise PhaseError(f"{phase.name} wrote no checkpoint; this is a defect of the phase")
    return report


def _run(job: dict[str, Any], events: EventLog, outcome: Outcome) -> None:
    phase, config, sources, out = _prepared(job)
    out.warn = events.warning
    atomic.remove_leftovers(out.path.parent, out.path.name)
    atomic.remove_leftovers(out.path)
    events.emit("start", message=phase.summary)
    place = device.pick_device(config.runtime.device)
    if place.type != "cpu":
        events.message(f"runs on {device.describe(place)}")
    if config.runtime.processes > 1 and not phase.several_processes:
        events.warning(
            f"{phase.name} works in one process: "
            f"runtime.processes={config.runtime.processes} is not used"
        )
    run = PhaseRun(config, sources, out, events)
    report = _work(phase, run)
    child = checkpoint.open(report.outputs[0])
    outcome.peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    outcome.report = json.loads(json.dumps(asdict(report)))
    outcome.outputs = [str(path) for path in report.outputs]
    outcome.deployable_bytes = child.manifest.deployable_bytes
    outcome.file_bytes = child.manifest.file_bytes
    outcome.checkpoint_id = child.id
    outcome.parent = str(sources[0].stored) if sources else ""
    _gate(phase, run, child, outcome)
    out.clear_state()


def _gate(phase: Phase, run: PhaseRun[PhaseConfig], child: Checkpoint, outcome: Outcome) -> None:
    """Score parent and child, judge, and carry out the policy on failure."""
    from agent_forge.pipeline.gate import Chain, judge_child

    config, out, events = run.config, run.out, run.events
    outcome.status = "done"
    if not config.gate.enabled:
        return
    chain = Chain(
        child=child,
        parent=run.sources[0] if run.sources else None,
        base=checkpoint.open(config.gate.base, verify=False) if config.gate.base else None,
    )
    verdict, speed = judge_child(phase, config, chain, events)
    outcome.verdict, outcome.tokens_per_second = verdict, speed
    events.emit("gate", message="; ".join(verdict["reasons"]) or "passed", metrics=verdict)
    if verdict["passed"] or config.gate.on_failure == "continue":
        return
    outcome.status, outcome.exit_code = "rejected", 3
    outcome.message = f"{phase.name}: the gate refused the result: {'; '.join(verdict['reasons'])}"
    if config.gate.on_failure == "rollback":
        aside = out.path.with_name(f"{out.path.name}.rejected")
        out.check_stop()
        if out.path.exists():
            if aside.exists():
                shutil.rmtree(aside)
            out.path.rename(aside)
        outcome.outputs = [
            str(aside / Path(path).relative_to(out.path)) for path in outcome.outputs
        ]


def _close(outcome: Outcome, record: Path, events: EventLog, started: float) -> None:
    outcome.seconds = time.monotonic() - started
    if sys.exc_info()[0] is None:
        outcome.save(record)
        events.emit(
            "complete",
            message=outcome.report.get("summary", ""),
            metrics={"status": outcome.status},
        )
    else:
        # The error that is being handled may itself be the full disk.
        with contextlib.suppress(OSError):
            events.emit("error", message=str(sys.exc_info()[1]))
    events.close()


def _failed(outcome: Outcome, record: Path, error: ForgeError) -> int:
    outcome.status = "interrupted" if isinstance(error, Interrupted) else "failed"
    outcome.exit_code, outcome.message = error.exit_code, str(error)
    if not isinstance(error, LockedError):
        with contextlib.suppress(StorageError):  # the exit code and stderr then tell the parent
            outcome.save(record)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
