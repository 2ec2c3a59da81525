"""Read each new event once, keep the newest, and serve any number of clients from that.

A client reads with its own cursor, so a slow one costs nothing and a lost one leaves nothing. What
is older than the newest few thousand messages comes from the event table, in blocks.
"""

import asyncio
import contextlib
import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from agent_forge.core.errors import ForgeError
from agent_forge.server.jobs import Job
from agent_forge.server.live.messages import Message, gap, message_of, snapshot
from agent_forge.server.store import StoredEvent

NEWEST = 4096  # messages that are kept in memory
BLOCK = 500  # messages of one read
LOOK_SECONDS = 1.0  # the longest wait where nothing wakes the loop
log = logging.getLogger("agent_forge")


class EventSource(Protocol):
    """Where events come from: the supervisor, or a reader of its database."""

    def events(self, after: int, limit: int = ..., job_id: str | None = ...) -> list[StoredEvent]:
        """Return events behind a number."""

    def oldest_seq(self) -> int:
        """Return the number of the oldest event that is kept."""

    def last_seq(self) -> int:
        """Return the number of the newest event."""

    def get(self, job_id: str) -> Job:
        """Return a job."""

    def list(self) -> list[Job]:
        """Return all jobs."""


@dataclass(slots=True)
class Batch:
    """What a client gets at once: texts to send as they are, then messages.

    cursor: where the client is after them.
    """

    cursor: int
    messages: list[Message] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class Hub:
    """The events of one server process."""

    def __init__(
        self,
        source: EventSource,
        subscribe: Callable[[Callable[[int], None]], Callable[[], None]] | None = None,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self.source, self.look_seconds = source, look_seconds
        self.closing = False
        self._subscribe = subscribe
        self._unsubscribe: Callable[[], None] = lambda: None
        self._recent: list[Message] = []
        self._last = 0  # the newest event that was read
        self._commands: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to follow the events. Call it in the loop that serves the clients."""
        loop = asyncio.get_running_loop()
        self._wake, self._news, self._stop = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._last = await asyncio.to_thread(self.source.last_seq)
        if self._subscribe is not None:
            self._unsubscribe = self._subscribe(lambda _seq: _from_thread(loop, self._wake.set))
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """End all streams."""
        self.stop_streams()
        self._unsubscribe()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def stop_streams(self) -> None:
        """Let every stream end, so that a server that stops does not wait for them."""
        self.closing = True
        if self._task is not None:
            self._stop.set()
            self._news.set()
            self._wake.set()

    async def stopped(self, wait_seconds: float) -> bool:
        """Return whether the streams end, as soon as they do or when the time has passed."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), wait_seconds)
        return self.closing

    def last_seq(self) -> int:
        """Return the number of the newest message that clients may have."""
        return self._last

    async def read(self, cursor: int, task_id: str | None, wait_seconds: float) -> Batch:
        """Return what follows `cursor`, of one job or of all; wait for it, but not for ever.

        The batch is empty when nothing came in time, and when the server stops.
        """
        batch = await self._ready(cursor, task_id)
        if batch.messages or batch.notices or self.closing:
            return batch
        news = self._news
        # Something may have come while the table was being read.
        if batch.cursor >= self._last:
            try:
                await asyncio.wait_for(news.wait(), wait_seconds)
            except TimeoutError:
                return batch
        return await self._ready(batch.cursor, task_id)

    async def _ready(self, cursor: int, task_id: str | None) -> Batch:
        recent = self._recent
        if cursor == self._last:
            return Batch(cursor)
        if recent and recent[0].seq <= cursor + 1 and cursor <= self._last:
            start = bisect_right(recent, cursor, key=lambda message: message.seq)
            block = recent[start : start + BLOCK]
            mine = [one for one in block if task_id is None or one.task_id == task_id]
            return Batch(block[-1].seq if block else cursor, mine)
        return await asyncio.to_thread(self._from_table, cursor, task_id)

    def _from_table(self, cursor: int, task_id: str | None) -> Batch:
        oldest, newest = self.source.oldest_seq(), self.source.last_seq()
        if cursor + 1 < oldest or cursor > newest:
            start = oldest - 1
            jobs = self.source.list()
            return Batch(
                start, notices=[gap(cursor, oldest, newest), snapshot(start, newest, jobs)]
            )
        events = self.source.events(cursor, BLOCK, task_id)
        messages = [self._translated(event) for event in events]
        # Where the block is not full there is nothing more of this job up to the newest event.
        reached = events[-1].seq if len(events) == BLOCK else max(newest, cursor)
        if len(events) < BLOCK and events:
            reached = max(reached, events[-1].seq)
        return Batch(reached, messages)

    async def _follow(self) -> None:
        while not self.closing:
            try:
                fresh = await asyncio.to_thread(self._fresh)
            except ForgeError as error:  # the database cannot be read now; the next look may
                log.warning("live updates: %s", error)
                fresh = []
            if fresh:
                self._recent = [*self._recent, *fresh][-NEWEST:]
                self._last = fresh[-1].seq
                news, self._news = self._news, asyncio.Event()
                news.set()
            if len(fresh) < BLOCK:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self.look_seconds)
                self._wake.clear()

    def _fresh(self) -> list[Message]:
        return [self._translated(event) for event in self.source.events(self._last, BLOCK)]

    def _translated(self, event: StoredEvent) -> Message:
        command = event.metrics.get("command") or self._commands.get(event.job_id)
        if command is None:
            try:
                command = self.source.get(event.job_id).command
            except ForgeError:  # events outlive their job for a while
                command = event.phase
        if len(self._commands) > NEWEST:
            self._commands.clear()
        self._commands[event.job_id] = command
        return message_of(event, command)


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call something in the loop, unless the loop has ended."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)
