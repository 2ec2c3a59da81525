"""One WebSocket: the older protocol's requests in, messages out, until one side has enough.

    {"type": "subscribe", "channel": "phase_updates", "after": 17, "task_id": "..."}
    {"type": "start_phase", "phase": "bitnet", "config": {...}}

`after` is the number of the last message that the client has: what came since is sent first. A
client that has not subscribed follows the phase that it starts. Every message has `seq`, the number
to come back with (null before there is one), and `task_id`. A client that takes nothing for a while
is closed with 1013 and comes back with its number.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.websockets import WebSocketState

from agent_forge.core.errors import ConfigError, ForgeError
from agent_forge.server.live.hub import Batch
from agent_forge.server.reading import forward
from agent_forge.server.security.keys import Key
from agent_forge.server.service import CONTROL, Service

HEARTBEAT_SECONDS = 15.0
SLOW_SECONDS = 10.0  # a client that takes a message no sooner is slow
TRY_AGAIN, GOING_AWAY, POLICY = 1013, 1012, 1008


class Subscribe(BaseModel):
    """Send what happens: from now on, or from behind the number `after`."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["subscribe"]
    channel: Literal["phase_updates"]
    after: int | None = Field(None, ge=0, le=2**62)
    task_id: str | None = Field(None, max_length=64)


class StartPhase(BaseModel):
    """Start a phase, or run-all."""

    model_config = ConfigDict(extra="forbid")
    type: Literal["start_phase"]
    phase: str = Field(max_length=100)
    config: dict[str, Any] | list[str] | None = None


REQUEST: TypeAdapter[Subscribe | StartPhase] = TypeAdapter(Subscribe | StartPhase)


class Session:
    """One client."""

    def __init__(self, service: Service, socket: WebSocket, key: Key) -> None:
        self.service, self.socket, self.key = service, socket, key
        self._cursor: int | None = None
        self._task_id: str | None = None
        self._subscription = 0  # counts them; what was read for an older one is not sent
        self._reading = anyio.CancelScope()
        # Two tasks write: what is said of a request must not cut into a replay.
        self._turn = anyio.Lock()

    async def run(self) -> None:
        """Serve the client until it leaves, is too slow, loses its key, or the server stops."""
        await self.socket.accept()
        end: _Closed | None = _Closed(GOING_AWAY, "the server stops; come back with your number")
        async with anyio.create_task_group() as group:

            async def until_its_end(part: Callable[[], Awaitable[None]]) -> None:
                nonlocal end
                try:
                    await part()
                except WebSocketDisconnect:
                    end = None
                except _Closed as closed:
                    end = closed
                group.cancel_scope.cancel()

            group.start_soon(until_its_end, self._listen)
            group.start_soon(until_its_end, self._send_updates)
        if end is not None and self.socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                with anyio.move_on_after(SLOW_SECONDS):
                    await self.socket.close(end.code, end.reason)

    async def _listen(self) -> None:
        while True:
            text = await self.socket.receive_text()
            seconds = await self.service.rates.count_request(self.key.id)
            if seconds:
                await self._say_error(None, f"too many requests; try again in {seconds} s")
                continue
            try:
                request = REQUEST.validate_json(text)
            except ValidationError:
                await self._say_error(
                    None, "a request is {type: subscribe, channel: phase_updates, after?, task_id?}"
                    " or {type: start_phase, phase, config}",
                )  # fmt: skip
                continue
            if isinstance(request, Subscribe):
                await self._subscribe(request)
            else:
                await self._start(request)

    async def _subscribe(self, request: Subscribe) -> None:
        if not self.key.allows("read"):
            await self._say_error(None, "this key lacks the scope 'read'")
            return
        start = self.service.hub.last_seq() if request.after is None else request.after
        async with self._turn:
            self._subscription += 1
            self._cursor, self._task_id = start, request.task_id
            await self._send(
                json.dumps(
                    {
                        "type": "subscribed", "channel": request.channel, "seq": start,
                        "task_id": request.task_id,
                    }
                )
            )  # fmt: skip
        self._reading.cancel()

    async def _start(self, request: StartPhase) -> None:
        if not self.key.allows("run"):
            await self._say_error(request.phase, "this key lacks the scope 'run'")
            return
        start = self._start_here if CONTROL in self.service.parts else self._start_there
        before = self.service.hub.last_seq()
        try:
            task_id, status = await asyncio.to_thread(start, request)
        except ForgeError as error:
            await self._say_error(request.phase, str(error))
            return
        await self._say(
            {"type": "started", "task_id": task_id, "phase": request.phase, "status": status}
        )
        if self._cursor is None:
            async with self._turn:
                self._subscription += 1
                self._cursor, self._task_id = before, task_id
            self._reading.cancel()

    def _start_here(self, request: StartPhase) -> tuple[str, str]:
        job = self.service.start_job(request.phase, request.config)
        return job.id, job.state

    def _start_there(self, request: StartPhase) -> tuple[str, str]:
        """Let the control part start it, with the key that opened this socket."""
        control, shown = self.service.control, self.socket.headers.get("authorization")
        if shown is None:
            where = f"POST /phases/start on port {control[1]}"
            raise ConfigError(f"a ticket starts nothing here: {where}")
        body = {"phase_name": request.phase, "config": request.config}
        status, answer = forward(control, "/v1/phases/start", body, shown)
        if status >= 400:
            raise ConfigError(answer["error"]["message"])
        return answer["task_id"], answer["status"]

    async def _send_updates(self) -> None:
        while not self.service.hub.closing:
            subscription, cursor = self._subscription, self._cursor
            with anyio.CancelScope() as self._reading:
                batch = await self._next(cursor)
            if subscription != self._subscription:
                continue
            for text in batch.notices:
                await self._send_of(subscription, text, cursor)
            for message in batch.messages:
                await self._send_of(subscription, message.text, message.seq)
            if subscription != self._subscription:
                continue
            self._cursor = None if cursor is None else batch.cursor
            if not batch.messages and not batch.notices:
                await self._beat()

    async def _send_of(self, subscription: int, text: str, cursor: int | None) -> None:
        """Send what a subscription reads, unless there is a newer one; note where its client is."""
        async with self._turn:
            if subscription == self._subscription:
                await self._send(text)
                self._cursor = cursor

    async def _next(self, cursor: int | None) -> Batch:
        """Return what follows, empty after a while without news."""
        if cursor is not None:
            return await self.service.hub.read(cursor, self._task_id, HEARTBEAT_SECONDS)
        await self.service.hub.stopped(HEARTBEAT_SECONDS)
        return Batch(0)

    async def _beat(self) -> None:
        if self.service.ring.current(self.key.id) is None:
            raise _Closed(POLICY, "the key was revoked or has expired")
        await self._say({"type": "heartbeat", "task_id": self._task_id})

    async def _say_error(self, phase: str | None, message: str) -> None:
        await self._say({"type": "error", "phase": phase, "message": message, "task_id": None})

    async def _say(self, content: dict[str, Any]) -> None:
        """Send a message that is not an event."""
        async with self._turn:
            await self._send(json.dumps({**content, "seq": self._cursor}))

    async def _send(self, text: str) -> None:
        """Send a text. The caller has the turn."""
        try:
            with anyio.fail_after(SLOW_SECONDS):
                await self.socket.send_text(text)
        except TimeoutError:
            raise _Closed(TRY_AGAIN, "too slow; come back with your last number") from None


class _Closed(Exception):
    """The server closes the socket."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason
