"""Which models are loaded: one process each, the least recently used ones leave for memory.

A `Seat` is a model's place: a thread with a queue of jobs, and the model's process while it lives.
A process that crashes ends its own job with a reason; the next job starts a new one. A process that
has died between two jobs costs none: it may be dying for a moment in which it still looks alive, so
a job that it did not begin goes to a new one.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge.checkpoint.manifest import MANIFEST
from agent_forge.core.errors import ForgeError
from agent_forge.server.openai.process import ModelError, ModelProcess, NotBegunError

# A process that has only opened its model: Python and its libraries, beside the weights.
BASE_BYTES = 150 << 20
WAITING_JOBS = 16
_log = logging.getLogger("agent_forge")
_numbers = itertools.count(1)
Tell = Callable[[dict[str, Any]], None]


class BusyError(ForgeError):
    """Too many jobs wait for this model."""


@dataclass(eq=False)
class Job:
    """One request on its way. `tell` gets its records from another thread; the last is done or
    error.
    """

    content: Mapping[str, Any]
    tell: Tell
    number: int = field(default_factory=lambda: next(_numbers))
    is_cancelled: bool = False
    seat: "Seat | None" = None

    def cancel(self) -> None:
        """End the job: before its next token, or before it begins."""
        self.is_cancelled = True
        if self.seat is not None:
            self.seat.cancel(self)


class ModelPool:
    """The loaded models.

    memory_bytes: what all processes together may hold; a model that is to be loaded makes the
    others leave that nobody uses, the least recently used first, and waits for those in use.
    """

    def __init__(self, *, memory_bytes: int, device: str = "auto", engine: str = "auto") -> None:
        self.memory_bytes = memory_bytes
        self.device, self.engine = device, engine
        self._changed = threading.Condition()
        self._seats: dict[tuple[Path, int], Seat] = {}  # the least recently used first
        self._is_closed = False

    def submit(self, path: Path, content: Mapping[str, Any], tell: Tell) -> Job:
        """Queue a job for the model in a directory, without waiting.

        Raises BusyError where too many wait already, ModelError after `close`.
        """
        job = Job(content, tell)
        with self._changed:
            if self._is_closed:
                raise ModelError("the server is going down")
            key = (path.resolve(), (path / MANIFEST).stat().st_mtime_ns)
            seat = self._seats.pop(key, None) or Seat(self, path)
            self._seats[key] = seat
            seat.add(job)
        return job

    def loaded(self) -> dict[str, int]:
        """Return the process of each loaded model, by its directory's name."""
        with self._changed:
            seats = [seat for seat in self._seats.values() if seat.process is not None]
            return {seat.path.name: seat.process.pid for seat in seats if seat.process}

    def close(self) -> None:
        """End all processes. Jobs that wait or run are told an error."""
        with self._changed:
            self._is_closed = True
            seats = list(self._seats.values())
            self._seats.clear()
        for seat in seats:
            seat.leave()

    def make_room(self, seat: "Seat") -> None:
        """Let others leave until the seat's model fits, waiting for those in use.

        Raises ModelError where it fits not even alone.
        """
        needed = BASE_BYTES + sum(f.stat().st_size for f in seat.path.glob("*.safetensors"))
        if needed > self.memory_bytes:
            raise ModelError(
                f"the model needs about {needed >> 20} MiB of memory, and the limit is "
                f"{self.memory_bytes >> 20} MiB; raise the limit or serve a smaller model"
            )
        while not self._is_closed:
            with self._changed:
                if needed <= self.memory_bytes - self._held(seat):
                    return
                leaving = self._idle_one(seat)
                if leaving is None:
                    self._changed.wait(1.0)
            if leaving is not None:
                leaving.leave()

    def settle(self, seat: "Seat") -> None:
        """Let others leave when a job has made its process outgrow the limit; wake who waits."""
        while True:
            with self._changed:
                self._changed.notify_all()
                if self._held() <= self.memory_bytes:
                    return
                leaving = self._idle_one(seat)
            if leaving is None:
                return
            leaving.leave()

    def _held(self, but: "Seat | None" = None) -> int:
        processes = [seat.process for seat in self._seats.values() if seat is not but]
        return sum(process.memory_bytes for process in processes if process is not None)

    def _idle_one(self, but: "Seat") -> "Seat | None":
        """Take the least recently used idle model out, or return None where none is idle."""
        for key, seat in self._seats.items():
            if seat is not but and seat.process is not None and seat.is_idle:
                del self._seats[key]
                _log.info("%s: unloaded to make room", seat.path.name)
                return seat
        return None


class Seat:
    """A model's place in the pool."""

    def __init__(self, pool: ModelPool, path: Path) -> None:
        self.pool, self.path = pool, path
        self.process: ModelProcess | None = None
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._active: Job | None = None
        self._leaves = False
        self._thread = threading.Thread(target=self._work, name=f"model {path.name}", daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        """Return whether no job runs or waits."""
        with self._changed:
            return self._active is None and not self._waiting

    def add(self, job: Job) -> None:
        """Queue a job. Raises BusyError where too many wait."""
        with self._changed:
            if len(self._waiting) >= WAITING_JOBS:
                raise BusyError(f"{WAITING_JOBS} requests wait for this model already; try later")
            job.seat = self
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """End a job where it runs; one that waits is passed over when its time comes."""
        with self._changed:
            process = self.process if self._active is job else None
        if process is not None:
            process.cancel(job.number)

    def leave(self) -> None:
        """End the process and the thread, and wait until they have; jobs are told an error."""
        with self._changed:
            self._leaves = True
            process = self.process
            self._changed.notify_all()
        if process is not None:
            process.end()
        self._thread.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except ModelError as error:
                self._drop_process()
                if not job.is_cancelled:
                    _log.error("%s: %s", self.path.name, error)
                _fail(job, str(error))
            with self._changed:
                self._active = None
            self.pool.settle(self)
        for job in self._waiting:
            _fail(job, "the model was unloaded")
        self._drop_process()

    def _next(self) -> Job | None:
        """Wait for a job and make it the active one; return None when the seat is to be left."""
        with self._changed:
            while True:
                while not self._waiting and not self._leaves:
                    self._changed.wait()
                if self._leaves:
                    return None
                job = self._waiting.popleft()
                if not job.is_cancelled:
                    self._active = job
                    return job

    def _run(self, job: Job) -> None:
        process = self.process
        if process is not None and process.is_alive:
            try:
                self._ask(process, job)
                return
            except NotBegunError:
                if self._leaves:
                    raise
                _log.info("%s: its process has ended, another one is started", self.path.name)
        self._ask(self._new_process(), job)

    def _new_process(self) -> ModelProcess:
        self._drop_process()
        self.pool.make_room(self)
        process = ModelProcess(self.path, device=self.pool.device, engine=self.pool.engine)
        with self._changed:
            self.process = process
        process.start()
        return process

    def _ask(self, process: ModelProcess, job: Job) -> None:
        if job.is_cancelled or self._leaves:
            _fail(job, "the request was cancelled")
        else:
            process.ask(job.number, job.content, job.tell)

    def _drop_process(self) -> None:
        with self._changed:
            process, self.process = self.process, None
        if process is not None:
            process.release()


def _fail(job: Job, message: str) -> None:
    job.tell({"event": "error", "message": message, "code": "model_failed"})
