"""Run jobs one after the other, tell the truth about them, and lose nothing on a kill.

    supervisor = Supervisor(database, root, LocalLauncher())
    supervisor.start()
    job = supervisor.submit("bitnet", ["train.steps=50"], sources=[checkpoint_id])
    supervisor.events(after=0, limit=100, job_id=job.id)

Reads and writes the database, and the jobs' directories below `root`. A job is a `forge` command in
a process of its own, so it outlives the server. On start, and every few seconds, each job that is
said to run is looked for: the very same process (pid, start time, boot) is watched on; an exit file
or an outcome ends the job; otherwise it is `interrupted`. Calls may come from any thread; they
return when the change is on the disk. One thread of its own launches, watches and stops.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from sqlite3 import Connection
from typing import TypeVar

from agent_forge.core.errors import ForgeError, PhaseError
from agent_forge.server import commands, jobs, queueing, records, store
from agent_forge.server.checkpoints import Registry
from agent_forge.server.database import Database
from agent_forge.server.jobs import Job, JobState, WrongState
from agent_forge.server.launchers import Launcher
from agent_forge.server.queueing import QueueState
from agent_forge.server.retention import Retention
from agent_forge.server.settings import JobSettings
from agent_forge.server.starting import Starter
from agent_forge.server.store import StoredEvent
from agent_forge.server.terminals import TerminalRuns
from agent_forge.server.watching import Watcher, launch_of
from agent_forge.server.workplace import Workplace

T = TypeVar("T")
log = logging.getLogger("agent_forge")
SCAN_SECONDS = 60.0  # between looks for checkpoints that others than jobs wrote


class Supervisor:
    """The jobs of one server. `root`: where jobs write, each below `root/jobs/ID`."""

    def __init__(
        self,
        database: Database,
        root: Path,
        launcher: Launcher,
        *,
        registry: Registry | None = None,
        settings: JobSettings | None = None,
    ) -> None:
        self.workplace = Workplace(database, root, launcher, registry, settings)
        self.database, self.registry = database, self.workplace.registry
        self.settings, self.root = self.workplace.settings, self.workplace.root
        self._watcher, self._starter = Watcher(self.workplace), Starter(self.workplace)
        self._terminals, self._retention = TerminalRuns(self.workplace), Retention(self.workplace)
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._defect: BaseException | None = None

    def start(self) -> None:
        """Take up what an earlier server left, and begin to run jobs."""
        (self.root / "jobs").mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Jobs go on; the next server finds them."""
        self._stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise PhaseError where the supervisor's thread has ended by a defect: no job is watched
        any more, and the server should be started again.
        """
        if self._defect is not None:
            raise PhaseError(
                f"jobs are not watched any more, because of a defect "
                f"({type(self._defect).__name__}: {self._defect}); start the server again, and "
                "report it with the server's log"
            )

    def submit(
        self,
        command: str,
        overrides: Sequence[str] = (),
        *,
        idempotency_key: str | None = None,
        sources: Sequence[str] = (),
        hidden_overrides: Sequence[str] = (),
    ) -> Job:
        """Queue a job and return it; the same key with the same request returns the first one.

        command: a phase, "run-all", or "import", "merge", "export". overrides: KEY=VALUE as typed,
        shown to clients. sources: ids of checkpoints, which the server turns into directories when
        the job starts. hidden_overrides: settings with paths of the server, which no client sees;
        of import, merge and export all their arguments but where they write.
        Raises ConfigError for an unknown command, a setting that is the server's, or a key that
        names another request; CheckpointError for an unknown source; StorageError on a full disk.
        """
        self.check()
        commands.check_command(command)
        commands.check_overrides(command, overrides)
        for source in sources:
            self.registry.path_of(source)
        self.database.check_space()
        job_id = secrets.token_hex(8)
        out, record = commands.place(self.root, job_id, command)
        job = Job(
            id=job_id, command=command, overrides=list(overrides), sources=list(sources),
            hidden_overrides=list(hidden_overrides), created=time.time(), out=str(out),
            record=str(record),
        )  # fmt: skip
        self._starter.check(job)
        stored = self.change(lambda c: queueing.add(c, job, idempotency_key))
        self.wake()
        return stored

    def get(self, job_id: str) -> Job:
        """Return a job as it is now. Raises UnknownJob."""
        with self.database.read() as connection:
            return jobs.load(connection, job_id)

    def current(self) -> Job | None:
        """Return the newest job that has a process, else the newest of all, else None."""
        with self.database.read() as connection:
            return queueing.current(connection)

    def pause(self, job_id: str) -> Job:
        """Stop a job where it can go on, or hold one back that waits; once is as good as twice.

        The job is `pausing` until its process has saved and ended. Raises UnknownJob, WrongState.
        """
        return self._request(job_id, JobState.PAUSED, {JobState.QUEUED: JobState.PAUSED,
                             JobState.RUNNING: JobState.PAUSING}, {JobState.PAUSING})  # fmt: skip

    def resume(self, job_id: str) -> Job:
        """Queue a paused, interrupted or failed job again; it goes on from its last saved state.

        Raises UnknownJob, and WrongState while it still runs or when it has ended for good.
        """
        waiting = {JobState.PAUSED, JobState.INTERRUPTED, JobState.FAILED}
        return self._request(
            job_id, JobState.QUEUED, dict.fromkeys(waiting, JobState.QUEUED), set()
        )

    def cancel(self, job_id: str) -> Job:
        """Stop a job for good. It is `cancelling` until its process has ended, by force after the
        grace. Raises UnknownJob, and WrongState when it has ended already.
        """
        still = {JobState.QUEUED, JobState.PAUSED, JobState.INTERRUPTED}
        allowed = dict.fromkeys(still, JobState.CANCELLED)
        allowed |= dict.fromkeys((JobState.RUNNING, JobState.PAUSING), JobState.CANCELLING)
        return self._request(job_id, JobState.CANCELLED, allowed, {JobState.CANCELLING})

    def reorder(self, ids: Sequence[str]) -> list[Job]:
        """Let the named jobs run first, in this order; return the queue. Raises UnknownJob, and
        WrongState for a job that does not wait.
        """
        self.change(lambda connection: queueing.reorder(connection, ids))
        self.wake()
        return self.list(JobState.QUEUED)

    def queue(self) -> QueueState:
        """Return whether the queue is paused, whether it goes on after a failure, and its jobs."""
        with self.database.read() as connection:
            return queueing.state(connection)

    def set_queue(
        self, *, paused: bool | None = None, continue_on_error: bool | None = None
    ) -> QueueState:
        """Pause the queue (what runs goes on), or say whether it goes on after a failed job."""
        self.change(lambda c: queueing.set_state(c, paused, continue_on_error))
        self.wake()
        return self.queue()

    def events(self, after: int, limit: int = 1000, job_id: str | None = None) -> list[StoredEvent]:
        """Return up to `limit` events behind the number `after`, oldest first."""
        with self.database.read() as connection:
            return store.events(connection, after, limit, job_id)

    def oldest_seq(self) -> int:
        """Return the number from which on no event was forgotten.

        A client that has seen all up to `n` has a gap where `n + 1` is below it.
        """
        with self.database.read() as connection:
            return queueing.oldest_seq(connection)

    def last_seq(self) -> int:
        """Return the number of the newest event there has ever been, 0 before the first."""
        with self.database.read() as connection:
            return queueing.last_seq(connection)

    def tail(self, job_id: str, lines: int = 50) -> str:
        """Return the end of what a job wrote to standard error, without the server's paths."""
        job = self.get(job_id)
        with self.database.read() as connection:
            attempt = store.last_attempt(connection, job_id)
        if attempt is None or job.origin == jobs.TERMINAL:
            return ""
        launcher = self.workplace.launcher_named(attempt.launcher)
        said = launcher.tail(launch_of(self.workplace, job, attempt), lines)
        return records.without_paths(said, self.registry)

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(last_seq)` whenever there are new events; return how to end that.

        It is called on a thread of the service, where it must not wait: asyncio clients use
        `loop.call_soon_threadsafe`, or `wakeups.Wakeups`.
        """
        return self.workplace.subscribe(callback)

    def change(self, work: Callable[[Connection], T]) -> T:
        """Run a change of the database, wait until it is on the disk, and tell of new events."""
        return self.workplace.change(work)

    def wake(self) -> None:
        """Let the supervisor look at its jobs now."""
        self._wake.set()

    def list(self, state: JobState | None = None) -> "list[Job]":
        """Return all jobs or the jobs of one state, newest first; or the queue in its order."""
        with self.database.read() as connection:
            return queueing.listed(connection, state)

    def _request(
        self,
        job_id: str,
        wish: JobState,
        allowed: dict[JobState, JobState],
        under_way: set[JobState],
    ) -> Job:
        """Take a job to what its state leads to; leave one that is there, or on its way."""

        def work(connection: Connection) -> Job:
            job = jobs.load(connection, job_id)
            if job.state == wish or job.state in under_way:
                return job
            if job.origin == jobs.TERMINAL:
                raise WrongState(f"job {job_id} was started in a terminal: stop or start it there")
            if job.state not in allowed:
                raise WrongState(f"job {job_id} is {job.state} and cannot become {wish}")
            if allowed[job.state] is JobState.QUEUED:
                queueing.to_back(connection, job)
            store.change_state(connection, job, allowed[job.state])
            return job

        job = self.change(work)
        self.wake()
        return job

    def _run(self) -> None:
        """Look at the jobs again and again. A full disk is waited out: nothing is lost by it."""
        checked = scanned = -math.inf
        complaint = ""
        try:
            while not self._stopping:
                try:
                    if time.monotonic() - checked >= self.settings.check_seconds:
                        checked = time.monotonic()
                        self._terminals.look()
                        self._retention.look()
                    if time.monotonic() - scanned >= SCAN_SECONDS:
                        scanned = time.monotonic()
                        self.registry.scan()
                    try:
                        self._watcher.look()
                    finally:
                        self._starter.start_waiting()
                    complaint = ""
                except ForgeError as error:
                    if str(error) != complaint:  # said once, not four times per second
                        log.warning("jobs: %s", error)
                    complaint = str(error)
                self._wake.wait(self.settings.poll_seconds)
                self._wake.clear()
        except BaseException as error:
            self._defect = error
            log.exception("jobs are not watched any more")
            raise
