"""Server-sent events: the same messages, one way, for `curl -N` and browsers' fetch.

The id of each event is its number, so a client that comes back with `Last-Event-ID` goes on behind
it. Nothing is sent to a client that does not read: it asks for the next block when it has the last.
"""

from collections.abc import AsyncIterator

from fastapi.sse import ServerSentEvent

from agent_forge.server.security.keys import Key
from agent_forge.server.service import Service

HEARTBEAT_SECONDS = 10.0


async def updates(
    service: Service, key: Key, after: int, task_id: str | None
) -> AsyncIterator[ServerSentEvent]:
    """Yield what follows `after`, for as long as the client, its key and the server last."""
    cursor = after
    while not service.hub.closing and service.ring.current(key.id) is not None:
        batch = await service.hub.read(cursor, task_id, HEARTBEAT_SECONDS)
        for text in batch.notices:
            yield ServerSentEvent(
                raw_data=text, event="gap" if '"gap"' in text[:16] else "snapshot"
            )
        for message in batch.messages:
            yield ServerSentEvent(raw_data=message.text, event=message.type, id=str(message.seq))
        cursor = batch.cursor
        if not batch.messages and not batch.notices:
            yield ServerSentEvent(comment=f"at {cursor}")
