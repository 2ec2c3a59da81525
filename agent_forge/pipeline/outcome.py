"""The outcome of one run of a phase, kept as outcome.json in its record directory."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import atomic
from agent_forge.config.compose import flatten

OUTCOME = "outcome.json"
JOB = "job.json"
EVENTS = "events.jsonl"
COMMAND = "command.json"  # how a run was begun in a terminal, beside its record
# Settings that change how the work is done, and not its result.
NOT_INPUT = (
    "out", "data.cache", "runtime.save_every_seconds", "runtime.workers", "runtime.resume_anyway",
    "runtime.background", "sources", "gate.base",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Outcome:
    """The end of a phase. status: done, rejected (by its gate), failed or interrupted."""

    phase: str
    status: str
    input_hash: str
    exit_code: int = 0
    message: str = ""
    outputs: list[str] = field(default_factory=list)  # the next phase reads the first
    parent: str = ""
    report: dict[str, Any] = field(default_factory=dict)  # config.Report as plain values
    verdict: dict[str, Any] | None = None  # evaluate.Verdict as plain values; None when not gated
    deployable_bytes: int = 0  # size of the packed file that would be shipped
    file_bytes: int = 0  # size of the weight files in the checkpoint
    checkpoint_id: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    tokens_per_second: float = 0.0
    attempt: str = ""  # the run that ended so, as its events name it

    def save(self, record: Path) -> None:
        """Write outcome.json into the record directory, atomically."""
        atomic.write_json(record / OUTCOME, asdict(self))


def read_outcome(record: Path) -> Outcome | None:
    """Return the outcome kept in a record directory, or None."""
    try:
        return Outcome(**json.loads((record / OUTCOME).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def read_command(record: Path) -> str:
    """Return the command that began the run of a record directory in a terminal, or ""."""
    try:
        return str(json.loads((record / COMMAND).read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, KeyError):
        return ""


def read_job(record: Path) -> dict[str, Any] | None:
    """Return the job kept in a record directory, or None where there is none or it is damaged."""
    try:
        job = json.loads((record / JOB).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = ("phase", "input_hash")
    is_whole = isinstance(job, dict) and all(isinstance(job.get(name), str) for name in names)
    return job if is_whole else None


def input_hash(phase: str, settings: Mapping[str, Any], source_ids: Sequence[str]) -> str:
    """Return a hash of what decides a phase's result: settings and content of the sources."""
    relevant = {name: value for name, value in flatten(settings) if name not in NOT_INPUT}
    text = json.dumps([phase, relevant, list(source_ids)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ, as "name: old -> new"."""
    before, after = dict(flatten(old)), dict(flatten(new))
    return [
        f"{name}: {before.get(name, '(none)')} -> {after.get(name, '(none)')}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name) and name not in NOT_INPUT
    ]
