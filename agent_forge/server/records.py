"""What a job's run directory says: its new events, and how an attempt ended.

Reads `events.jsonl` and `outcome.json` of the phases of a job; writes nothing there. Absolute paths
become ids of checkpoints, or the last part of their name, before anybody sees them.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.core.events import Event, EventReader, Position
from agent_forge.pipeline.outcome import EVENTS, JOB, Outcome, read_outcome
from agent_forge.server.checkpoints import Registry
from agent_forge.server.commands import TOOLS
from agent_forge.server.jobs import RUN_ALL, SERVICE, Job, JobState

# Exit codes of forge (DESIGN 3) that are not failures.
ENDS = {0: JobState.SUCCEEDED, 3: JobState.REJECTED, 75: JobState.INTERRUPTED,
        130: JobState.INTERRUPTED}  # fmt: skip
OF_OUTCOME = {"done": JobState.SUCCEEDED, "rejected": JobState.REJECTED,
              "failed": JobState.FAILED, "interrupted": JobState.INTERRUPTED}  # fmt: skip
ABSOLUTE = re.compile(r"(?<![\w.~/-])/(?:[^\s/'\",;:()\[\]{}]+/)*[^\s/'\",;:()\[\]{}]+")


@dataclass(slots=True, kw_only=True)
class End:
    """How an attempt ended."""

    state: JobState
    message: str = ""
    error_code: int | None = None
    results: dict[str, Any] = field(default_factory=dict)


class EventFiles:
    """The growing files of events of one job, read from where an earlier reader stopped."""

    def __init__(self, job: Job, positions: Mapping[str, Position]) -> None:
        self.record, self.command = Path(job.record), job.command
        self._readers = {
            name: EventReader(self._file(name), place) for name, place in positions.items()
        }

    def read(self) -> Iterator[tuple[str, Event]]:
        """Yield (name of the record, event) for what is new, from a block of each file."""
        for name in self._names():
            if name not in self._readers:
                self._readers[name] = EventReader(self._file(name))
            for event in self._readers[name].read():
                yield name, event

    @property
    def positions(self) -> dict[str, Position]:
        """Return how far each file was read."""
        return {name: reader.position for name, reader in self._readers.items()}

    @property
    def damaged(self) -> int:
        """Return the number of lines that held no event."""
        return sum(reader.damaged for reader in self._readers.values())

    def _names(self) -> list[str]:
        if self.command != RUN_ALL:
            return [""]
        places = (path.parent for path in self.record.glob(f"*/{EVENTS}"))
        return [place.name for place in sorted(places, key=place_order)]

    def _file(self, name: str) -> Path:
        return self.record / name / EVENTS


def place_order(place: Path) -> tuple[int, str]:
    """Return a sort key for the records of a run, which are called 1-cognate, 2-evomerge, ..."""
    number = place.name.partition("-")[0]
    return (int(number) if number.isdigit() else 0, place.name)


def outcome_state(place: Path) -> JobState:
    """Return the state of a phase, from the outcome in its record."""
    outcome = read_outcome(place)
    return (
        JobState.INTERRUPTED if outcome is None else OF_OUTCOME.get(outcome.status, JobState.FAILED)
    )


def end_of(job: Job, token: str, exit_code: int | None, log: str, registry: Registry) -> End:
    """Return how an attempt ended: by its exit code, else by its outcome, else interrupted.

    token: the attempt. log: the end of its standard error.
    """
    outcomes = outcomes_of(job)
    last = outcomes[-1] if outcomes else None
    of_attempt = last is not None and (last.attempt == token or last.status in ("done", "rejected"))
    if exit_code is not None:
        # A negative code is a signal that nobody answered: the job goes on from its last state.
        state = JobState.INTERRUPTED if exit_code < 0 else ENDS.get(exit_code, JobState.FAILED)
    elif last is not None and of_attempt and job.command != RUN_ALL:
        state = OF_OUTCOME.get(last.status, JobState.FAILED)
    elif last is not None and last.attempt == token and last.status == "failed":
        state = JobState.FAILED
    elif job.command in TOOLS and registry.id_of(Path(job.out)):
        state = JobState.SUCCEEDED  # checkpoints are written whole or not at all
    else:
        state = JobState.INTERRUPTED
    message = last.message if last is not None and last.attempt == token else ""
    if not message and state is not JobState.SUCCEEDED:
        message = _last_word(log) or _why(state, exit_code)
    results = _results(job, state, outcomes if of_attempt or exit_code == 0 else [], registry)
    message = message or str(results.get("summary", ""))
    if job.origin == SERVICE:  # who gave the command in a terminal gives it again; here one resumes
        message = message.replace("the same command goes on", "resume goes on")
    return End(
        state=state, message=without_paths(message, registry), error_code=exit_code,
        results=results,
    )  # fmt: skip


def _last_word(log: str) -> str:
    """Return the last line of a log that forge wrote for its user."""
    said = [line for line in log.splitlines() if line.startswith("forge: ")]
    return said[-1].removeprefix("forge: ") if said else ""


def _why(state: JobState, exit_code: int | None) -> str:
    if state is JobState.INTERRUPTED and (exit_code is None or exit_code < 0):
        cause = f"by signal {-exit_code}" if exit_code and exit_code < 0 else "without an outcome"
        return f"the job's process ended {cause}; resume goes on from its last saved state"
    if state is JobState.INTERRUPTED:
        return "the job has saved and stopped; resume goes on from there"
    return f"forge ended with exit code {exit_code}; the job's log says more"


def outcomes_of(job: Job) -> list[Outcome]:
    """Return the outcomes in a job's record; a run's are in the order of its phases."""
    record = Path(job.record)
    if job.command != RUN_ALL:
        outcome = read_outcome(record)
        return [outcome] if outcome is not None else []
    places = sorted((path.parent for path in record.glob(f"*/{JOB}")), key=place_order)
    return [outcome for place in places if (outcome := read_outcome(place)) is not None]


def _results(
    job: Job, state: JobState, outcomes: list[Outcome], registry: Registry
) -> dict[str, Any]:
    """Return what a client may know of the outcomes: ids instead of paths."""
    if job.command in TOOLS and state is JobState.SUCCEEDED:
        checkpoint_id = registry.id_of(Path(job.out)) or ""
        ids = [checkpoint_id] if checkpoint_id else []
        return {"status": str(state), "checkpoint_id": checkpoint_id, "checkpoints": ids}
    if not outcomes:
        return {}
    phases = [_result(outcome, registry) for outcome in outcomes]
    accepted = [result for result in phases if result["status"] == "done"]
    result = accepted[-1] if accepted and job.command == RUN_ALL else phases[-1]
    listed = {"phases": phases} if job.command == RUN_ALL else {}
    return {**result, "status": str(state), **listed}


def _result(outcome: Outcome, registry: Registry) -> dict[str, Any]:
    ids = [registry.id_of(Path(path)) for path in outcome.outputs]
    result = {
        "phase": outcome.phase, "status": outcome.status, "checkpoint_id": outcome.checkpoint_id,
        "checkpoints": [one for one in ids if one], "seconds": outcome.seconds,
        "summary": outcome.report.get("summary", ""),
        "metrics": outcome.report.get("metrics", {}), "verdict": outcome.verdict,
        "deployable_bytes": outcome.deployable_bytes, "file_bytes": outcome.file_bytes,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "tokens_per_second": outcome.tokens_per_second,
    }  # fmt: skip
    hidden: dict[str, Any] = json.loads(without_paths(json.dumps(result), registry))
    return hidden


def without_paths(text: str, registry: Registry) -> str:
    """Return text with absolute paths replaced: a checkpoint's by its id, others by their name."""
    if "/" not in text:
        return text

    def name(match: re.Match[str]) -> str:
        path = Path(match[0])
        return registry.id_of(path) or path.name

    return ABSOLUTE.sub(name, text)


def plain_metrics(metrics: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Return the metrics of an event; the path of an artefact becomes the id of its checkpoint."""
    if not metrics:
        return {}
    values = dict(metrics)
    if "path" in values:
        values["checkpoint_id"] = registry.id_of(Path(values["path"])) or ""
    # NaN and infinities are not JSON; those inside of lists and mappings become text here.
    plain: dict[str, Any] = json.loads(
        without_paths(json.dumps(values), registry), parse_constant=lambda name: str(float(name))
    )
    return plain
