"""One look at the jobs: what they did, whether they still run, who is to stop, who may start.

Reads the jobs' run directories and processes, writes the database. The look is taken by one thread.
It keeps nothing that a restart would miss: what it knows is in the rows of jobs and attempts.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from agent_forge.core.errors import ConfigError, ForgeError
from agent_forge.core.events import Event
from agent_forge.server import commands, jobs, queueing, records, store
from agent_forge.server.checkpoints import Registry
from agent_forge.server.database import Database
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.launchers import Launch, Launcher
from agent_forge.server.progress import PhaseProgress, overall
from agent_forge.server.records import EventFiles
from agent_forge.server.settings import JobSettings, visible_gpus
from agent_forge.server.store import Attempt, StoredEvent

T = TypeVar("T")
log = logging.getLogger("agent_forge")
FIND_SECONDS = (
    3.0  # an attempt without a process this long after its launch was cut off never began
)
KILL_AGAIN_SECONDS = 5.0


@dataclass(slots=True)
class Watch:
    """What this server knows of a running attempt beyond its row.

    stop_since: monotonic seconds of the first look at which it was to stop. kill_since: of the last
    end by force.
    """

    attempt: Attempt
    files: EventFiles
    progress: dict[str, PhaseProgress] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)
    stop_since: float | None = None
    kill_since: float | None = None


class Watcher:
    """Looks at the jobs of one database. change: runs a change of the database and tells of it."""

    def __init__(
        self, *, database: Database, root: Path, launcher: Launcher, registry: Registry,
        settings: JobSettings, change: Callable[[Callable[[Any], Any]], Any],
    ) -> None:  # fmt: skip
        self.database, self.root, self.launcher = database, root, launcher
        self.registry, self.settings, self.change = registry, settings, change
        self.gpus = visible_gpus() if settings.gpus is None else settings.gpus
        self._watches: dict[str, Watch] = {}

    def look(self) -> None:
        """Take one look. Raises ForgeError when the database cannot be written."""
        with self.database.read() as connection:
            active = queueing.active(connection)
        for job in active:
            if job.origin == jobs.SERVICE:
                self._look_at(job)
        self._start_waiting()

    def check_processes(self, overrides: list[str]) -> None:
        """Raise ConfigError for a job that needs more accelerators than there are."""
        needed = commands.processes_needed(overrides)
        if self.gpus and needed > len(self.gpus):
            raise ConfigError(
                f"runtime.processes={needed} needs as many accelerators, the service has "
                f"{len(self.gpus)}; set it to {len(self.gpus)} or less"
            )

    def tail(self, job: Job, lines: int) -> str:
        """Return the end of the standard error of a job's newest attempt."""
        with self.database.read() as connection:
            attempt = store.last_attempt(connection, job.id)
        if attempt is None:
            return ""
        text = self.launcher.tail(self._launch(job, attempt), lines)
        return records.without_paths(text, self.registry)

    def _look_at(self, job: Job) -> None:
        watch = self._watch(job)
        if watch is None:
            return
        status = self.launcher.poll(watch.attempt.handle or {})
        self._take_events(job, watch)
        if not status.alive:
            self._settle(job, watch, status.exit_code)
        elif job.state in (JobState.PAUSING, JobState.CANCELLING):
            self._stop(watch)

    def _watch(self, job: Job) -> Watch | None:
        """Return the watch over a job's attempt; None while, or when, it has no process."""
        with self.database.read() as connection:
            attempt = store.last_attempt(connection, job.id)
        assert attempt is not None, f"job {job.id} is {job.state} without an attempt"
        watch = self._watches.get(attempt.id)
        if watch is None:
            watch = Watch(attempt, EventFiles(job, attempt.positions))
            self._watches[attempt.id] = watch
        if watch.attempt.handle is None:
            handle = self.launcher.find(self._launch(job, attempt))
            if handle is not None:
                watch.attempt.handle = handle
                self.change(lambda c: store.note_attempt(c, attempt.id, handle=handle))
            elif time.monotonic() - watch.since > FIND_SECONDS:
                self._never_began(job, attempt)
        return watch if watch.attempt.handle is not None else None

    def _never_began(self, job: Job, attempt: Attempt) -> None:
        """Take back a launch that a killed server began and that no process came of."""
        leads_to = {
            JobState.RUNNING: JobState.QUEUED, JobState.PAUSING: JobState.PAUSED,
            JobState.CANCELLING: JobState.CANCELLED,
        }  # fmt: skip

        def work(connection: Any) -> None:
            stored = jobs.load(connection, job.id)
            store.note_attempt(connection, attempt.id, ended=time.time())
            store.change_state(connection, stored, leads_to[stored.state])

        self.change(work)
        del self._watches[attempt.id]

    def _take_events(self, job: Job, watch: Watch) -> bool:
        """Store what the job has written since the last look; return whether there was any."""
        before = watch.files.positions
        batch = list(watch.files.read())
        if watch.files.positions == before:
            return False
        rows = []
        for name, event in batch:
            self._progress(job, watch, event)
            rows.append((self._stored(job, watch, event), f"{name}:{event.attempt}", event.seq))

        def work(connection: Any) -> None:
            for stored, source, seq in rows:
                store.add_event(connection, stored, source, seq)
            store.note_attempt(connection, watch.attempt.id, positions=watch.files.positions)
            jobs.update(connection, job, "progress", "message")

        self.change(work)
        return True

    def _progress(self, job: Job, watch: Watch, event: Event) -> None:
        tracker = watch.progress.setdefault(event.phase, PhaseProgress(event.phase))
        tracker.take(event)
        percents = {phase: one.percent for phase, one in watch.progress.items()}
        job.progress = max(job.progress, overall(percents, commands.run_phases(job)))
        if event.message:
            job.message = records.without_paths(event.message, self.registry)

    def _stored(self, job: Job, watch: Watch, event: Event) -> StoredEvent:
        return StoredEvent(
            seq=0, job_id=job.id, attempt=job.attempt, time=event.time, kind=event.kind,
            phase=event.phase, stage=event.stage, step=event.step, total=event.total,
            percent=watch.progress[event.phase].percent, progress=job.progress,
            message=records.without_paths(event.message, self.registry),
            metrics=records.plain_metrics(event.metrics, self.registry),
        )  # fmt: skip

    def _settle(self, job: Job, watch: Watch, exit_code: int | None) -> None:
        """Record the end of an attempt whose process is gone."""
        launch = self._launch(job, watch.attempt)
        self.launcher.sweep(launch)
        while self._take_events(job, watch):
            pass
        end = records.end_of(
            job, watch.attempt.id, exit_code, self.launcher.tail(launch), self.registry
        )

        def work(connection: Any) -> None:
            stored = jobs.load(connection, job.id)
            state = _final(stored.state, end.state)
            progress = 100.0 if state is JobState.SUCCEEDED else job.progress
            store.note_attempt(connection, watch.attempt.id, ended=time.time(), exit_code=exit_code)
            store.change_state(
                connection, stored, state, ended=time.time(), progress=progress,
                message=end.message or job.message, results=end.results,
                error_code=end.error_code,
            )  # fmt: skip
            if state is JobState.FAILED and not queueing.state(connection).continue_on_error:
                queueing.set_state(connection, True, None)

        self.change(work)
        del self._watches[watch.attempt.id]

    def _stop(self, watch: Watch) -> None:
        """Ask an attempt to stop, and end it by force when the grace is over."""
        attempt, clock = watch.attempt, time.monotonic()
        assert attempt.handle is not None
        if watch.stop_since is None:
            watch.stop_since = clock
            if attempt.stop_sent is None:  # a second request would end it without saving
                self.launcher.cancel(attempt.handle, force=False)
                attempt.stop_sent = time.time()
                self.change(
                    lambda c: store.note_attempt(c, attempt.id, stop_sent=attempt.stop_sent)
                )
        elif clock - watch.stop_since > self.settings.grace_seconds and (
            watch.kill_since is None or clock - watch.kill_since > KILL_AGAIN_SECONDS
        ):
            watch.kill_since = clock
            log.warning(
                "job %s did not stop within %g s and is ended by force",
                attempt.job_id, self.settings.grace_seconds,
            )  # fmt: skip
            self.launcher.cancel(attempt.handle, force=True)
            self.change(lambda c: store.note_attempt(c, attempt.id, kill_sent=time.time()))

    def _start_waiting(self) -> None:
        """Launch waiting jobs while there is room for them."""
        while True:
            with self.database.read() as connection:
                queue = queueing.waiting(connection)
                paused = queueing.state(connection).paused
                running = [
                    (job, store.last_attempt(connection, job.id))
                    for job in queueing.active(connection) if job.origin == jobs.SERVICE
                ]  # fmt: skip
            if paused or not queue:
                return
            gpus = self._room_for(queue[0], [attempt for _, attempt in running if attempt])
            if gpus is None:
                return
            self._start(queue[0], gpus)

    def _room_for(self, job: Job, running: list[Attempt]) -> list[str] | None:
        """Return the accelerators for a job, [] where it needs none; None while it must wait."""
        if not self.gpus:
            return [] if len(running) < self.settings.cpu_jobs else None
        taken = {gpu for attempt in running for gpu in attempt.gpus}
        free = [gpu for gpu in self.gpus if gpu not in taken]
        needed = commands.processes_needed([*job.overrides, *job.hidden_overrides])
        return free[:needed] if len(free) >= needed else None

    def _start(self, job: Job, gpus: list[str]) -> None:
        """Launch a job: the attempt is on the disk before its process, its handle after it."""

        def begin(connection: Any) -> Attempt:
            stored = jobs.load(connection, job.id)
            earlier = store.last_attempt(connection, job.id)
            attempt = Attempt(
                id=secrets.token_hex(8), job_id=job.id, number=stored.attempt + 1,
                launcher=self.launcher.name, handle=None, gpus=gpus, created=time.time(),
                stop_sent=None, kill_sent=None, positions=earlier.positions if earlier else {},
            )  # fmt: skip
            store.add_attempt(connection, attempt)
            store.change_state(
                connection, stored, JobState.RUNNING, attempt=attempt.number, progress=0.0,
                started=time.time(), ended=None, message="", results={}, error_code=None,
            )  # fmt: skip
            return attempt

        try:
            attempt: Attempt = self.change(begin)
        except jobs.WrongState:  # it was cancelled or held back meanwhile
            return
        try:
            sources = [self.registry.path_of(source) for source in job.sources]
            launch = self._launch(job, attempt)
            launch.arguments = commands.arguments(job, self.root, sources)
            handle = self.launcher.submit(launch)
        except ForgeError as error:
            text, code = records.without_paths(str(error), self.registry), error.exit_code

            def fail(connection: Any) -> None:
                stored = jobs.load(connection, job.id)
                state = _final(stored.state, JobState.FAILED)
                store.note_attempt(connection, attempt.id, ended=time.time())
                store.change_state(
                    connection, stored, state, message=text, error_code=code, ended=time.time()
                )

            self.change(fail)
            return
        attempt.handle = handle
        self._watches[attempt.id] = Watch(attempt, EventFiles(job, attempt.positions))
        self.change(lambda c: store.note_attempt(c, attempt.id, handle=handle))

    def _launch(self, job: Job, attempt: Attempt) -> Launch:
        return Launch(
            token=attempt.id,
            directory=commands.job_directory(self.root, job.id),
            gpus=attempt.gpus if self.gpus else None,
        )  # fmt: skip


def _final(asked: JobState, seen: JobState) -> JobState:
    """Return the state of a job that was to stop, from how its process ended."""
    if seen in (JobState.SUCCEEDED, JobState.REJECTED):
        return seen
    if asked is JobState.CANCELLING:
        return JobState.CANCELLED
    if asked is JobState.PAUSING and seen is JobState.INTERRUPTED:
        return JobState.PAUSED
    return seen
