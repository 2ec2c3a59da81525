"""Limit how often a key may ask, and how often an address may fail to show one.

The `limits` package counts, in memory: a sliding window per key. Failures to
authenticate are counted per address and weigh more, so guessing ends in 429 after a few. Every
refusal says in Retry-After when to try again.
"""

import math
import time

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_forge.server.security.asgi import refuse

REQUESTS_PER_MINUTE = 1200
FAILURES_PER_MINUTE = 10


class Rates:
    """Counts of the last minute. Per minute: requests of a key, failures of an address."""

    def __init__(
        self,
        requests_per_minute: int = REQUESTS_PER_MINUTE,
        failures_per_minute: int = FAILURES_PER_MINUTE,
    ) -> None:
        self._window = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(requests_per_minute)
        self._failures = RateLimitItemPerMinute(failures_per_minute)

    async def count_request(self, identity: str) -> int:
        """Count a request; return 0, or the seconds to wait because there were too many."""
        if await self._window.hit(self._requests, "request", identity):
            return 0
        return await self._wait(self._requests, "request", identity)

    async def count_failure(self, address: str) -> None:
        """Count a failure to authenticate."""
        await self._window.hit(self._failures, "failure", address)

    async def wait_after_failures(self, address: str) -> int:
        """Return 0, or the seconds that an address waits because it has failed too often."""
        if await self._window.test(self._failures, "failure", address):
            return 0
        return await self._wait(self._failures, "failure", address)

    async def _wait(self, item: RateLimitItemPerMinute, kind: str, identity: str) -> int:
        stats = await self._window.get_window_stats(item, kind, identity)
        return max(1, math.ceil(stats.reset_time - time.time()))


class RateLimit:
    """Answer 429 to a key (or, on public routes, an address) that asks too often."""

    def __init__(self, app: ASGIApp, *, rates: Rates) -> None:
        self.app, self.rates = app, rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on unless there were too many."""
        if scope["type"] in ("http", "websocket"):
            key = scope.get("state", {}).get("key")
            seconds = await self.rates.count_request(key.id if key else address_of(scope))
            if seconds:
                await too_often(scope, receive, send, seconds)
                return
        await self.app(scope, receive, send)


async def too_often(scope: Scope, receive: Receive, send: Send, seconds: int) -> None:
    """Answer 429."""
    message = f"too many requests; try again in {seconds} s"
    await refuse(scope, receive, send, 429, message, headers={"retry-after": str(seconds)})


def address_of(scope: Scope) -> str:
    """Return the address of the client. Proxies' headers are not believed here; uvicorn may be
    told to.
    """
    client = scope.get("client")
    return client[0] if client else "unknown"
