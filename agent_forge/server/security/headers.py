"""Headers of every answer: no inline script, no frame, no other site, nothing cached.

The dashboard is built of files of its own, so its policy needs no exception.
"""

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src {connect}; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
FIXED = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
CACHED = "/assets/"  # the dashboard's files, whose names change with their content


def headers(connect: tuple[str, ...] = ()) -> dict[str, str]:
    """Return the headers; connect: other origins that the dashboard may ask (a split service)."""
    return {
        **FIXED,
        "content-security-policy": POLICY.format(connect=" ".join(("'self'", *connect))),
    }


class SafeHeaders:
    """Set the headers on every answer, on refusals too; what an answer sets itself stays."""

    def __init__(self, app: ASGIApp, *, values: Mapping[str, str]) -> None:
        self.app, self.values = app, dict(values)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and mark its answer."""

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                lines = MutableHeaders(scope=message)
                for name, value in self.values.items():
                    lines.setdefault(name, value)
                if not scope["path"].startswith(CACHED):
                    lines.setdefault("cache-control", "no-store")
            await send(message)

        await self.app(scope, receive, marked)
