"""Start the jobs that wait, in their order, while there is room for them."""

import secrets
import time
from sqlite3 import Connection

from agent_forge.core.errors import ConfigError, ForgeError
from agent_forge.server import commands, jobs, queueing, records, store
from agent_forge.server.jobs import Job, JobState, WrongState
from agent_forge.server.store import Attempt
from agent_forge.server.watching import launch_of
from agent_forge.server.workplace import Workplace


class Starter:
    """Launches the jobs of one service."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace

    def check(self, job: Job) -> None:
        """Raise ConfigError for a job that needs more accelerators than there are."""
        needed, gpus = commands.processes_needed(job), self.workplace.gpus
        if gpus and self.workplace.launcher.most_jobs is None and needed > len(gpus):
            raise ConfigError(
                f"runtime.processes={needed} needs as many accelerators, the service has "
                f"{len(gpus)}; set it to {len(gpus)} or less"
            )

    def start_waiting(self) -> None:
        """Launch jobs until the next one has to wait."""
        while (place := self._next()) is not None:
            self._start(*place)

    def _next(self) -> tuple[Job, list[str]] | None:
        """Return the next job and its accelerators, or None where nothing can start."""
        with self.workplace.database.read() as connection:
            if queueing.is_paused(connection):
                return None
            job = queueing.first(connection)
            if job is None:
                return None
            running = [
                attempt for other in queueing.active(connection) if other.origin == jobs.SERVICE
                and (attempt := store.last_attempt(connection, other.id)) is not None
            ]  # fmt: skip
        gpus = self._room_for(job, running)
        return None if gpus is None else (job, gpus)

    def _room_for(self, job: Job, running: list[Attempt]) -> list[str] | None:
        """Return the accelerators for a job, [] where it needs none; None while it must wait."""
        most = self.workplace.launcher.most_jobs
        if most is not None or not self.workplace.gpus:
            most = self.workplace.settings.cpu_jobs if most is None else most
            return [] if len(running) < most else None
        taken = {gpu for attempt in running for gpu in attempt.gpus}
        free = [gpu for gpu in self.workplace.gpus if gpu not in taken]
        needed = commands.processes_needed(job)
        return free[:needed] if len(free) >= needed else None

    def _start(self, job: Job, gpus: list[str]) -> None:
        """Launch a job: the attempt is on the disk before its process, its handle after it."""
        try:
            attempt = self.workplace.change(lambda c: self._begin(c, job.id, gpus))
        except WrongState:  # it was cancelled or held back meanwhile
            return
        try:
            sources = [self.workplace.registry.path_of(source) for source in job.sources]
            launch = launch_of(self.workplace, job, attempt)
            launch.arguments = commands.arguments(
                job, self.workplace.root, sources, background=self.workplace.settings.background
            )
            handle = self.workplace.launcher.submit(launch)
        except ForgeError as error:
            self._fail(job, attempt, error)
            return
        self.workplace.change(lambda c: store.note_attempt(c, attempt.id, handle=handle))

    def _begin(self, connection: Connection, job_id: str, gpus: list[str]) -> Attempt:
        job = jobs.load(connection, job_id)
        earlier = store.last_attempt(connection, job_id)
        attempt = Attempt(
            id=secrets.token_hex(8), job_id=job_id, number=job.attempt + 1,
            launcher=self.workplace.launcher.name, handle=None, gpus=gpus, created=time.time(),
            stop_sent=None, kill_sent=None, positions=earlier.positions if earlier else {},
        )  # fmt: skip
        store.change_state(
            connection, job, JobState.RUNNING, attempt=attempt.number, progress=0.0,
            started=time.time(), ended=None, message="", results={}, error_code=None,
        )  # fmt: skip
        store.add_attempt(connection, attempt)
        return attempt

    def _fail(self, job: Job, attempt: Attempt, error: ForgeError) -> None:
        """Note a job that could not be started, and why."""
        message = records.without_paths(str(error), self.workplace.registry)

        def work(connection: Connection) -> None:
            stored = jobs.load(connection, job.id)
            store.note_attempt(connection, attempt.id, ended=time.time())
            state = jobs.end_state(stored.state, JobState.FAILED)
            store.change_state(
                connection, stored, state, message=message, error_code=error.exit_code,
                ended=time.time(),
            )  # fmt: skip
            queueing.note_failure(connection)

        self.workplace.change(work)
