"""Write one audit record per request that changes something or was refused; plain ASGI.

Reads the scope of a request and the status of its answer; writes to an `AuditLog`. The record is on
the disk before the first byte of the answer leaves, so a client never sees a success that the log
lacks. Where the log cannot be written, the client gets 503 in the place of the answer.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from agent_forge.core.errors import ForgeError
from agent_forge.server.audit import AuditLog

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READING = frozenset({"GET", "HEAD", "OPTIONS"})
REFUSED = frozenset({401, 403, 421, 429})


def actor_of(scope: Scope) -> str:
    """Return `request.state.actor`, which authentication sets, or "anonymous"."""
    return str(scope.get("state", {}).get("actor") or "anonymous")


def is_audited(scope: Scope, status: int) -> bool:
    """Return whether a request is recorded: it may change something, or it was refused."""
    return scope["type"] == "websocket" or scope["method"] not in READING or status in REFUSED


class AuditMiddleware:
    """Wrap an ASGI application.

    actor: returns who acts. audited: returns whether a request with that status is recorded.
    Query strings and bodies are never recorded. Mount it outside of authentication, so that what
    authentication refuses is recorded too: the actor is read when the answer begins.
    """

    def __init__(
        self,
        app: App,
        log: AuditLog,
        *,
        actor: Callable[[Scope], str] = actor_of,
        audited: Callable[[Scope, int], bool] = is_audited,
    ) -> None:
        self.app, self.log, self.actor, self.audited = app, log, actor, audited

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request or connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})  # shared with the inner application, which names the actor
        start = time.monotonic()
        is_refused = False

        async def send_recorded(message: Message) -> None:
            nonlocal is_refused
            status = _status(message)
            if status and self.audited(scope, status):
                try:
                    await asyncio.to_thread(self._record, scope, status, time.monotonic() - start)
                except ForgeError:
                    is_refused = True
                    await _refuse(scope, send)
            if not is_refused:
                await send(message)

        await self.app(scope, receive, send_recorded)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        client = scope.get("client")
        detail = {
            "status": status, "milliseconds": round(1000 * seconds),
            "client": client[0] if client else "",
        }  # fmt: skip
        action = f"{scope['method']}" if scope["type"] == "http" else "websocket"
        self.log.append(self.actor(scope), action, scope["path"], detail)


def _status(message: Message) -> int:
    """Return the status that a message brings, 0 for a message that only follows."""
    kind = message["type"]
    if kind in ("http.response.start", "websocket.http.response.start"):
        return int(message["status"])
    return {"websocket.accept": 101, "websocket.close": int(message.get("code") or 1000)}.get(
        kind, 0
    )


async def _refuse(scope: Scope, send: Send) -> None:
    """Answer that nothing is done while the audit log cannot be written."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1011, "reason": "audit log unavailable"})
        return
    # As security/asgi.py writes errors, which needs packages that the log can do without.
    error = {
        "message": "the audit log cannot be written; nothing is answered without it",
        "type": "unavailable_error", "code": "unavailable_error", "param": None,
    }  # fmt: skip
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
