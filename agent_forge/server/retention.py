"""What the database forgets: old events of jobs that have ended, used keys of requests.

A job's row and its record directory stay. Events go from the oldest on, and the number of the first
one that is whole is kept, so a client that was away longer knows of its gap.
"""

import time
from sqlite3 import Connection

from agent_forge.server import queueing, store
from agent_forge.server.jobs import ACTIVE, JobState
from agent_forge.server.workplace import Workplace

EVERY_SECONDS = 600.0
AT_ONCE = 20_000  # rows per change, so that other changes do not wait long
DAY = 86_400.0
# Their events are needed whatever their age.
KEPT_STATES = (*ACTIVE, JobState.QUEUED, JobState.PAUSED)


class Retention:
    """Forgets, every few minutes, what the settings of the service say."""

    def __init__(self, workplace: Workplace) -> None:
        self.workplace = workplace
        self._last: float | None = None

    def look(self) -> None:
        """Forget what is due, once in a while. Raises StorageError."""
        now = time.monotonic()
        if self._last is None or now - self._last >= EVERY_SECONDS:
            self._last = now
            while self.forget():
                pass

    def forget(self) -> int:
        """Forget up to `AT_ONCE` events, and old keys; return the number of events."""
        settings = self.workplace.settings
        before = time.time() - settings.keep_days * DAY
        return self.workplace.change(lambda c: _forget(c, before, settings.keep_events))


def _forget(connection: Connection, before: float, most: int) -> int:
    connection.execute("DELETE FROM idempotency WHERE created < ?", [before])
    count = connection.execute("SELECT count(*) FROM event").fetchone()[0]
    edge = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM (SELECT seq FROM event ORDER BY seq LIMIT ?)",
        [max(count - most, 0)],
    ).fetchone()[0]
    marks = ", ".join("?" * len(KEPT_STATES))
    rows = connection.execute(
        "SELECT seq FROM event WHERE (time < ? OR seq <= ?) AND job_id NOT IN "
        f"(SELECT id FROM job WHERE state IN ({marks})) ORDER BY seq LIMIT ?",
        [before, edge, *KEPT_STATES, AT_ONCE],
    ).fetchall()
    if not rows:
        return 0
    connection.executemany("DELETE FROM event WHERE seq = ?", [(row[0],) for row in rows])
    whole = max(queueing.oldest_seq(connection), rows[-1][0] + 1)
    store.set_setting(connection, queueing.WHOLE_FROM, whole)
    connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()
    return len(rows)
