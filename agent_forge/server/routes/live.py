"""/ws and /v1/ws, /v1/events, /v1/tickets: live updates and the tickets for them."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, WebSocket
from fastapi.sse import EventSourceResponse, ServerSentEvent

from agent_forge.server.answers import TicketAnswer, errors
from agent_forge.server.live.socket import Session
from agent_forge.server.live.stream import updates
from agent_forge.server.security.authentication import needs, require
from agent_forge.server.security.keys import Key
from agent_forge.server.security.tickets import LIFE_SECONDS
from agent_forge.server.service import Service

Number = Annotated[int | None, Query(ge=0, le=2**62)]
LastEvent = Annotated[str | None, Header(alias="Last-Event-ID", pattern=r"^[0-9]{1,18}$")]


def router(service: Service) -> APIRouter:
    """Return the routes at /v1."""
    routes = APIRouter(tags=["live"])

    @routes.post("/tickets", responses=errors(), summary="A ticket for a WebSocket")
    async def ticket(key: Annotated[Key, Depends(needs("read"))]) -> TicketAnswer:
        """Return a ticket that opens one WebSocket within half a minute."""
        return TicketAnswer(ticket=service.tickets.make(key.id), expires_in=LIFE_SECONDS)

    @routes.get(
        "/events", response_class=EventSourceResponse, responses=errors(), summary="Follow events"
    )
    async def events(
        key: Annotated[Key, Depends(needs("read"))],
        after: Number = None,
        task_id: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = None,
        last_event_id: LastEvent = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Send the events of one job or of all as they come, and first what came after a number.

        `Last-Event-ID` comes before `after`; without both, the stream begins now.
        """
        start = int(last_event_id) if last_event_id else after
        newest = service.hub.last_seq()
        async for event in updates(service, key, newest if start is None else start, task_id):
            yield event

    return routes


def socket_router(service: Service) -> APIRouter:
    """Return the WebSocket, for both places."""
    routes = APIRouter()

    @routes.websocket("/ws")
    async def socket(socket: WebSocket) -> None:
        """Serve one client of the WebSocket."""
        await Session(service, socket, require(socket, "read")).run()

    return routes
