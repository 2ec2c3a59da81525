"""Watch the jobs that run: store what they write, stop those that are to stop, settle the ended.

Reads the jobs' run directories and processes, writes the database; one thread does it. What it
knows is in the rows of jobs and attempts, so a server that takes over goes on where the last one
was killed, between any two lines.
"""

import logging
import time
from dataclasses import dataclass, field
from sqlite3 import Connection

from agent_forge.core.errors import ForgeError, StorageError
from agent_forge.core.events import Event
from agent_forge.server import commands, jobs, queueing, records, store
from agent_forge.server.jobs import Job, JobState
from agent_forge.server.launchers import Launch, Launcher
from agent_forge.server.progress import JobProgress
from agent_forge.server.records import EventFiles
from agent_forge.server.store import Attempt, StoredEvent
from agent_forge.server.workplace import Workplace

log = logging.getLogger("agent_forge")
# An attempt without a process this long after a server has looked for it first never began.
FIND_SECONDS = 3.0
KILL_AGAIN_SECONDS = 5.0
LAST_LINES = 50  # The end of a job's log, where the reason of its end is looked for.


@dataclass(slots=True)
class Watch:
    """What this server knows of a running attempt beyond its row.

    since: monotonic seconds of the first look. stop_since: of the first look at which it was to
    stop. kill_since: of the last end by force. has_spoken: whether an event of it was read.
    """

    attempt: Attempt
    files: EventFiles
    progress: JobProgress
    since: float = field(default_factory=time.monotonic)
    stop_since: float | None = None
    kill_since: float | None = None
    has_spoken: bool = False


class Watcher:
    """Watches the attempts of one service."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self._watches: dict[str, Watch] = {}

    def look(self) -> None:
        """Look at every job that has a process.

        A job whose record or launcher gives trouble does not keep the others from being watched;
        the last trouble is raised when all were looked at, as a ForgeError.
        """
        with self.workplace.database.read() as connection:
            active = queueing.active(connection)
        trouble: ForgeError | None = None
        for job in active:
            try:
                self._look_at(job)
            except OSError as error:
                trouble = StorageError(f"job {job.id}: cannot read its record: {error}")
            except ForgeError as error:
                trouble = error
        if trouble is not None:
            raise trouble

    def _look_at(self, job: Job) -> None:
        watch = self._watch(job)
        if job.origin == jobs.TERMINAL:  # terminals.py sees to its end
            self.take_events(job, watch)
            return
        launch = launch_of(self.workplace, job, watch.attempt)
        if watch.attempt.handle is None and not self._find(job, watch, launch):
            return
        assert watch.attempt.handle is not None
        status = self._launcher(watch).poll(launch, watch.attempt.handle)
        self.take_events(job, watch)
        if not status.alive:
            self._settle(job, watch, launch, status.exit_code)
        elif job.state in (JobState.PAUSING, JobState.CANCELLING):
            self._stop(watch, launch)

    def _watch(self, job: Job) -> Watch:
        """Return the watch over a job's newest attempt."""
        with self.workplace.database.read() as connection:
            attempt = store.last_attempt(connection, job.id)
            assert attempt is not None, f"job {job.id} is {job.state} without an attempt"
            watch = self._watches.get(attempt.id)
            if watch is None:
                percents = store.percents(connection, job.id, attempt.number)
                progress = JobProgress(commands.run_phases(job), percents)
                watch = Watch(attempt, EventFiles(job, attempt.positions), progress)
                self._watches[attempt.id] = watch
            # The launch, or the request to stop, may have been noted since the last look.
            watch.attempt = attempt
        return watch

    def _launcher(self, watch: Watch) -> Launcher:
        """Return what started an attempt, which an earlier server may have done by other means."""
        return self.workplace.launcher_named(watch.attempt.launcher)

    def _find(self, job: Job, watch: Watch, launch: Launch) -> bool:
        """Look for the process of a launch that was cut off; return whether there is one."""
        handle = self._launcher(watch).find(launch)
        if handle is not None:
            watch.attempt.handle = handle
            token = launch.token
            self.workplace.change(lambda c: store.note_attempt(c, token, handle=handle))
        elif time.monotonic() - watch.since > FIND_SECONDS:
            while self.take_events(job, watch):
                pass
            if watch.has_spoken:  # it began and has died: only its start was never noted
                self._settle(job, watch, launch, None)
            else:
                self._take_back(job, watch)
        return handle is not None

    def _take_back(self, job: Job, watch: Watch) -> None:
        """Take back a launch that a killed server began and that no process came of."""
        leads_to = {
            JobState.RUNNING: JobState.QUEUED, JobState.PAUSING: JobState.PAUSED,
            JobState.CANCELLING: JobState.CANCELLED,
        }  # fmt: skip

        def work(connection: Connection) -> None:
            stored = jobs.load(connection, job.id)
            store.note_attempt(connection, watch.attempt.id, ended=time.time())
            store.change_state(
                connection, stored, leads_to[stored.state],
                message="the server ended before it could start the job",
            )  # fmt: skip

        self.workplace.change(work)
        del self._watches[watch.attempt.id]

    def take_events(self, job: Job, watch: Watch) -> bool:
        """Store what the job has written since the last look; return whether there was any."""
        before = watch.files.positions
        try:
            rows = [self._row(job, watch, name, event) for name, event in watch.files.read()]
            after = watch.files.positions
            if after == before:
                return False

            def work(connection: Connection) -> None:
                for stored, source, seq in rows:
                    store.add_event(connection, stored, source, seq)
                store.note_attempt(connection, watch.attempt.id, positions=after)
                jobs.update(connection, job, "progress", "message")

            self.workplace.change(work)
        except BaseException:
            watch.files = EventFiles(job, before)  # what was not stored is read again
            raise
        return True

    def _row(self, job: Job, watch: Watch, name: str, event: Event) -> tuple[StoredEvent, str, int]:
        registry = self.workplace.registry
        watch.has_spoken = watch.has_spoken or event.attempt == watch.attempt.id
        percent = watch.progress.take(event)
        job.progress = max(job.progress, watch.progress.overall())
        message = records.without_paths(event.message, registry)
        job.message = message or job.message
        stored = StoredEvent(
            seq=0, job_id=job.id, attempt=watch.attempt.number, time=event.time, kind=event.kind,
            phase=event.phase, stage=event.stage, step=event.step, total=event.total,
            percent=percent, progress=job.progress, message=message,
            metrics=records.plain_metrics(event.metrics, registry),
        )  # fmt: skip
        return stored, f"{name}:{event.attempt}", event.seq

    def _settle(self, job: Job, watch: Watch, launch: Launch, exit_code: int | None) -> None:
        """Record the end of an attempt whose process is gone."""
        launcher = self._launcher(watch)
        launcher.sweep(launch, watch.attempt.handle or {})
        while self.take_events(job, watch):
            pass
        if watch.files.damaged:
            log.warning("job %s: %d lines held no event", job.id, watch.files.damaged)
        # Before the end is known: who then asks for the model finds it.
        self.workplace.registry.scan(launch.directory.parent)
        said = launcher.tail(launch, LAST_LINES)
        end = records.end_of(job, launch.token, exit_code, said, self.workplace.registry)

        def work(connection: Connection) -> None:
            stored = jobs.load(connection, job.id)
            state = jobs.end_state(stored.state, end.state)
            now = time.time()
            store.note_attempt(connection, launch.token, ended=now, exit_code=exit_code)
            store.change_state(
                connection, stored, state, ended=now, results=end.results,
                progress=100.0 if state is JobState.SUCCEEDED else job.progress,
                message=end.message or job.message, error_code=end.error_code,
            )  # fmt: skip
            if state is JobState.FAILED:
                queueing.note_failure(connection)

        self.workplace.change(work)
        del self._watches[watch.attempt.id]

    def _stop(self, watch: Watch, launch: Launch) -> None:
        """Ask an attempt to stop, and end it by force when the grace is over."""
        attempt, clock, launcher = watch.attempt, time.monotonic(), self._launcher(watch)
        assert attempt.handle is not None
        if watch.stop_since is None:
            watch.stop_since = clock
            if attempt.stop_sent is None:  # a second request would end it without saving
                launcher.cancel(launch, attempt.handle, force=False)
                self.workplace.change(
                    lambda c: store.note_attempt(c, launch.token, stop_sent=time.time())
                )
            return
        grace = self.workplace.settings.grace_seconds
        is_due = watch.kill_since is None or clock - watch.kill_since > KILL_AGAIN_SECONDS
        if clock - watch.stop_since > grace and is_due:
            watch.kill_since = clock
            log.warning(
                "job %s did not stop within %g s: it is ended by force", attempt.job_id, grace
            )
            launcher.cancel(launch, attempt.handle, force=True)
            self.workplace.change(
                lambda c: store.note_attempt(c, launch.token, kill_sent=time.time())
            )


def launch_of(workplace: Workplace, job: Job, attempt: Attempt) -> Launch:
    """Return an attempt as its launcher knows it, without the arguments that start it."""
    return Launch(
        token=attempt.id, directory=commands.attempts_directory(workplace.root, job.id),
        gpus=attempt.gpus if workplace.gpus else None, processes=commands.processes_needed(job),
    )  # fmt: skip
