"""Find the runs that were started in a terminal, and show them among the jobs.

Reads the record directories below the watched roots: `.forge/NAME/` of a phase, and `.forge/` of a
run-all with its numbered phases. A run is alive while somebody holds its lock, or while the process
that began it lives: a worker takes the lock a moment after it was started. Such jobs can be watched,
not controlled.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

import psutil

from agent_forge.checkpoint.lock import LOCK_NAME
from agent_forge.checkpoint.manifest import MANIFEST
from agent_forge.core.errors import ConfigError
from agent_forge.core.events import EventReader
from agent_forge.pipeline.catalogue import phases
from agent_forge.pipeline.outcome import EVENTS, JOB, OUTCOME, read_command
from agent_forge.server import commands, jobs, records, store
from agent_forge.server.jobs import RUN_ALL, TERMINAL, Job, JobState
from agent_forge.server.store import Attempt
from agent_forge.server.workplace import Workplace

DEPTH = 4  # folders below a root in which runs are looked for
CLOCK_SECONDS = 2.0  # clocks of processes and of files may differ by this


@dataclass(slots=True, kw_only=True)
class FoundRun:
    """A run in a terminal: its command, its record, its places of phases, and when it began."""

    command: str
    out: Path
    record: Path
    places: list[Path]

    @property
    def id(self) -> str:
        """Return the id of its job: the record's place stands for it."""
        return "t" + hashlib.sha256(str(self.record).encode()).hexdigest()[:15]

    @property
    def begun(self) -> float:
        """Return when its newest phase was begun, in seconds since the epoch."""
        return max(_time(place / JOB) for place in self.places)


class TerminalRuns:
    """Looks for runs of terminals, and keeps their jobs true."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace

    def look(self) -> None:
        """Note every run below the watched roots, and in which state it is."""
        for root in self.workplace.settings.watch:
            for run in _runs_below(Path(root).absolute(), self.workplace.root / "jobs"):
                self._note(run)

    def _note(self, run: FoundRun) -> None:
        state = _state(run)
        with self.workplace.database.read() as connection:
            row = connection.execute("SELECT * FROM job WHERE id = ?", [run.id]).fetchone()
        known = None if row is None else jobs.from_row(row)
        if known is not None and known.state is state and run.begun <= (known.started or 0.0):
            return
        if known is not None and known.record != str(run.record):
            return
        self.workplace.change(lambda c: self._store(c, run, state))

    def _store(self, connection: Connection, run: FoundRun, state: JobState) -> None:
        row = connection.execute("SELECT * FROM job WHERE id = ?", [run.id]).fetchone()
        if row is None:
            job = Job(
                id=run.id, command=run.command, overrides=_typed(run), origin=TERMINAL,
                out=str(run.out), record=str(run.record), created=run.begun,
            )  # fmt: skip
            jobs.insert(connection, job)
        else:
            job = jobs.from_row(row)
            job.overrides = _typed(run)  # a run may be found before it notes them
            jobs.update(connection, job, "overrides")
        if job.attempt == 0 or run.begun > (job.started or 0.0):
            self._begin(connection, run, job, state)
        end = records.end_of(job, _token(job), None, "", self.workplace.registry)
        ended = state is not JobState.RUNNING
        progress = 100.0 if state is JobState.SUCCEEDED else job.progress
        store.note_state(
            connection, job, state, ended=time.time() if ended else None,
            started=run.begun, attempt=job.attempt, progress=progress,
            message=end.message if ended else job.message, results=end.results if ended else {},
        )  # fmt: skip

    def _begin(self, connection: Connection, run: FoundRun, job: Job, state: JobState) -> None:
        """Add an attempt. What a run that had ended before it was found has said is not replayed."""
        earlier = store.last_attempt(connection, job.id)
        positions = earlier.positions if earlier else {}
        if earlier is None and state is not JobState.RUNNING:
            for place in run.places:
                reader = EventReader(place / EVENTS)
                reader.skip_to_end()
                name = place.name if run.command == RUN_ALL else ""
                positions[name] = reader.position
        job.attempt, job.progress, job.started = job.attempt + 1, 0.0, run.begun
        attempt = Attempt(
            id=_token(job), job_id=job.id, number=job.attempt, launcher=TERMINAL, handle=None,
            gpus=[], created=run.begun, stop_sent=None, kill_sent=None, positions=positions,
        )  # fmt: skip
        store.add_attempt(connection, attempt)


def _typed(run: FoundRun) -> list[str]:
    """Return the settings that a run was begun with, without those that name a place on the disk."""
    try:
        words = shlex.split(read_command(run.record))[2:]
    except ValueError:
        return []
    return [word for word in words if "=" in word and _is_shown(run.command, word)]


def _is_shown(command: str, override: str) -> bool:
    try:
        commands.check_overrides(command, [override])
    except ConfigError:
        return False
    return True


def _token(job: Job) -> str:
    return f"{job.id}-{job.attempt}"


def _runs_below(root: Path, own_jobs: Path) -> Iterator[FoundRun]:
    """Yield the runs whose records lie below a root, without the service's own jobs."""
    for place, directories, files in os.walk(root):
        here = Path(place)
        if ".forge" in directories:
            yield from _runs_in(here)
        is_deep = len(here.relative_to(root).parts) >= DEPTH
        if is_deep or MANIFEST in files or here == own_jobs:
            directories.clear()
        directories[:] = [name for name in directories if not name.startswith(".")]


def _runs_in(folder: Path) -> Iterator[FoundRun]:
    """Yield the runs whose outputs lie in a folder: one run-all, or its phases one by one."""
    record = folder / ".forge"
    places = sorted((path.parent for path in record.glob(f"*/{JOB}")), key=records.place_order)
    numbered = [place for place in places if _is_of_a_run(place.name)]
    if numbered:
        yield FoundRun(command=RUN_ALL, out=folder, record=record, places=numbered)
    for place in places:
        if place not in numbered and (phase := _phase(place)) is not None:
            yield FoundRun(command=phase, out=folder / place.name, record=place, places=[place])


def _is_of_a_run(name: str) -> bool:
    match = re.fullmatch(r"\d+-(\w+)", name)
    return match is not None and match[1] in phases()


def _phase(place: Path) -> str | None:
    try:
        return str(json.loads((place / JOB).read_text(encoding="utf-8"))["phase"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it is being dropped, or was never whole


def _state(run: FoundRun) -> JobState:
    """Return the state of a run, from its locks and outcomes."""
    if run.command == RUN_ALL and _is_held(run.record):
        return JobState.RUNNING
    newest = max(run.places, key=lambda place: _time(place / JOB))
    if (newest / OUTCOME).exists():
        return records.outcome_state(newest)
    if _is_held(newest) or _starter_lives(newest):
        return JobState.RUNNING
    return JobState.INTERRUPTED


def _is_held(directory: Path) -> bool:
    """Return whether a process holds a directory's lock, without taking it from anybody."""
    try:
        descriptor = os.open(directory / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _starter_lives(place: Path) -> bool:
    """Return whether the process that wrote job.json still runs, and is the same one."""
    try:
        pid = int(json.loads((place / JOB).read_text(encoding="utf-8"))["parent_pid"])
        process = psutil.Process(pid)
        is_older = process.create_time() <= _time(place / JOB) + CLOCK_SECONDS
        return is_older and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return False


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
