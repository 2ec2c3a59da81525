"""Tickets for WebSockets: a browser cannot send a key there, and a key never stands in a URL.

A client with a key asks for a ticket and opens its socket with it within half a minute. A ticket
works once and lives in memory only: the process that made it is the one that takes it.
"""

import secrets
import time
from collections.abc import Callable
from hashlib import sha256

LIFE_SECONDS = 30.0
MOST_TICKETS = 10_000  # the oldest ones go first; nobody has this many sockets to open


class Tickets:
    """Tickets that were made and not yet used, by the hash of each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, tuple[str, float]] = {}

    def make(self, key_id: str) -> str:
        """Return a new ticket of a key."""
        self._drop_old()
        ticket = secrets.token_urlsafe(32)
        self._waiting[_hash(ticket)] = (key_id, self._clock() + LIFE_SECONDS)
        return ticket

    def take(self, ticket: str) -> str:
        """Use a ticket up; return the id of its key, or "" when it is unknown, used or too old."""
        key_id, expires = self._waiting.pop(_hash(ticket), ("", 0.0))
        return key_id if self._clock() < expires else ""

    def _drop_old(self) -> None:
        now = self._clock()
        # Tickets are in the order of their making, so the old ones come first.
        for digest, (_, expires) in list(self._waiting.items()):
            if expires > now and len(self._waiting) < MOST_TICKETS:
                break
            del self._waiting[digest]


def _hash(ticket: str) -> str:
    return sha256(ticket.encode()).hexdigest()
