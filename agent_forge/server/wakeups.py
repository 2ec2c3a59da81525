"""Let coroutines wait for new events of the supervisor, which come from threads.

async with Wakeups(supervisor) as wakeups:
    last = await wakeups.newer_than(last, timeout_seconds=15)
"""

import asyncio
from collections.abc import Callable
from types import TracebackType

from agent_forge.server.supervisor import Supervisor


class Wakeups:
    """Wakes the coroutines of one event loop when there are new events. One serves all clients."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor
        self.last_seq = 0
        self._news = asyncio.Event()
        self._end: Callable[[], None] | None = None

    async def __aenter__(self) -> "Wakeups":
        loop = asyncio.get_running_loop()

        def tell(last_seq: int) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._note, last_seq)

        self._end = self.supervisor.subscribe(tell)
        self.last_seq = max(self.last_seq, await asyncio.to_thread(self.supervisor.last_seq))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._end is not None:
            self._end()

    async def newer_than(self, seq: int, timeout_seconds: float) -> int:
        """Return the number of the newest event once it is above `seq`, or when time has passed."""
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_seconds
        while self.last_seq <= seq and (left := end - loop.time()) > 0:
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                break
        return self.last_seq

    def _note(self, last_seq: int) -> None:
        self.last_seq = max(self.last_seq, last_seq)
        # Everybody who waits holds the old event; who comes later waits for the next news.
        self._news.set()
        self._news = asyncio.Event()
