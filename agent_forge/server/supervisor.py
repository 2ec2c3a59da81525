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
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from agent_forge.core.errors import ForgeError
from agent_forge.server import commands, jobs, queueing, store
from agent_forge.server.checkpoints import Registry
from agent_forge.server.database import Database
from agent_forge.server.jobs import Job, JobState, WrongState
from agent_forge.server.launchers import Launcher
from agent_forge.server.queueing import QueueState
from agent_forge.server.settings import JobSettings
from agent_forge.server.store import StoredEvent
from agent_forge.server.watching import Watcher

T = TypeVar("T")
log = logging.getLogger("agent_forge")


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
        self.database, self.root = database, root.absolute()
        self.settings = settings or JobSettings()
        self.registry = registry or Registry(database, [self.root / "jobs", *self.settings.watch])
        self._watcher = Watcher(
            database=database, root=self.root, launcher=launcher, registry=self.registry,
            settings=self.settings, change=self.change,
        )  # fmt: skip
        self._listeners: list[Callable[[int], None]] = []
        self._wake = threading.Event()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take up what an earlier server left, and begin to run jobs."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching. Jobs go on; the next server finds them."""
        self._stopping = True
        self.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

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

        command: a phase, or "run-all". overrides: KEY=VALUE as typed, shown to clients. sources:
        ids of checkpoints, which the server turns into directories when the job starts.
        hidden_overrides: settings with paths of the server, which no client sees.
        Raises ConfigError for an unknown command, a setting that is the server's, or a key that
        names another request; CheckpointError for an unknown source; StorageError on a full disk.
        """
        commands.check_command(command)
        commands.check_overrides(overrides)
        self._watcher.check_processes([*overrides, *hidden_overrides])
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
        stored = self.change(lambda connection: queueing.add(connection, job, idempotency_key))
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
        """Return the number of the oldest event that is kept; a client that is further behind has
        a gap. One more than the last number where none is kept.
        """
        with self.database.read() as connection:
            return queueing.oldest_seq(connection)

    def last_seq(self) -> int:
        """Return the number of the newest event there has ever been, 0 before the first."""
        with self.database.read() as connection:
            return queueing.last_seq(connection)

    def tail(self, job_id: str, lines: int = 50) -> str:
        """Return the end of what a job wrote to standard error, without the server's paths."""
        return self._watcher.tail(self.get(job_id), lines)

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(last_seq)` whenever there are new events; return how to end that.

        It is called on a thread of the service, where it must not wait: asyncio clients use
        `loop.call_soon_threadsafe`, or `wakeups.Wakeups`.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def wake(self) -> None:
        """Let the supervisor look at its jobs now."""
        self._wake.set()

    def change(self, work: Callable[[Any], T]) -> T:
        """Run a change of the database, wait for it, and tell subscribers of new events."""
        before, result, after = self.database.write(
            lambda c: (queueing.last_seq(c), work(c), queueing.last_seq(c))
        ).result()
        if after > before:
            for listener in [*self._listeners]:
                listener(after)
        return result

    def list(self, state: JobState | None = None) -> "list[Job]":
        """Return all jobs, newest first; those of one state; or the queue in its order."""
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

        def work(connection: Any) -> Job:
            job = jobs.load(connection, job_id)
            if job.state == wish or job.state in under_way:
                return job
            if job.origin == jobs.TERMINAL:
                raise WrongState(f"job {job_id} was started in a terminal: stop or start it there")
            if job.state not in allowed:
                raise WrongState(f"job {job_id} is {job.state} and cannot become {wish}")
            store.change_state(connection, job, allowed[job.state])
            return job

        job = self.change(work)
        self.wake()
        return job

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._watcher.look()
            except ForgeError as error:  # a full disk: what was not recorded now is read again
                log.warning("jobs: %s", error)
            self._wake.wait(self.settings.poll_seconds)
            self._wake.clear()
