"""Refuse bodies above a size, announced or not, before anything parses them."""

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agent_forge.server.security.asgi import headers_of, refuse

MOST_BYTES = 1 << 20


class BodyCap:
    """Answer 413 to a longer body, in whatever pieces it arrives."""

    def __init__(self, app: ASGIApp, *, most_bytes: int = MOST_BYTES) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while it is short enough."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        message = f"a body has at most {self.most_bytes:,} bytes"
        announced = headers_of(scope).get("content-length", "0")
        if not (announced.isascii() and announced.isdigit()):
            await refuse(scope, receive, send, 400, "Content-Length is not a number")
            return
        if int(announced[:20]) > self.most_bytes:
            await refuse(scope, receive, send, 413, message)
            return
        count, started, over = 0, False, False

        async def counted() -> Message:
            nonlocal count, over
            part = await receive()
            count += len(part.get("body", b""))
            if count <= self.most_bytes:
                return part
            over = True
            if not started:
                await refuse(scope, receive, send, 413, message)
            return {"type": "http.disconnect"}

        async def unless_over(part: Message) -> None:
            nonlocal started
            started = True
            if not over:
                await send(part)

        try:
            await self.app(scope, counted, unless_over)
        except ClientDisconnect:
            if not over:  # the refusal above looks like this to the application
                raise
