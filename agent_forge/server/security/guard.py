"""Refuse requests that a page of another site, a rebound name or an HTML form has sent.

A page on any site can make a browser send requests to a server on the same machine. Such requests
name that page's host (after DNS rebinding), its origin, or say in `Sec-Fetch-Site` that they cross
sites; forms cannot send JSON. Programs send none of these headers and pass.
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_forge.server.security.asgi import headers_of, refuse

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CHANGES = ("POST", "PUT", "PATCH", "DELETE")
SAME_SITE = ("same-origin", "none")  # "none": the user typed the address


class Guard:
    """Check Host, Origin, Sec-Fetch-Site and the content type before anything else reads them.

    hosts: names by which this server is called, without ports. origins: further origins, as
    `https://name:port`, whose pages may use it.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: Collection[str] = LOOPBACK, origins: Collection[str] = ()
    ) -> None:
        self.app = app
        self.hosts = frozenset(host.lower().strip("[]") for host in hosts)
        self.origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = headers_of(scope)
        status, message = self._objection(scope, headers)
        if status:
            await refuse(scope, receive, send, status, message)
        else:
            await self.app(scope, receive, send)

    def _objection(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Return the status and text to refuse a request with, or (0, "")."""
        host = headers.get("host", "")
        # Two Host headers would let one reader see another host than the next.
        if len(headers.getlist("host")) != 1 or _name(host) not in self.hosts:
            return 421, f"this server is not called {host[:100]!r}; see --allow-host"
        origin = headers.get("origin")
        if len(headers.getlist("origin")) > 1:
            return 403, "the request names several origins"
        if origin is not None and not self._own(origin, host):
            return 403, f"pages of {origin[:100]!r} may not use this server; see --allow-origin"
        site = headers.get("sec-fetch-site", "none")
        if site not in SAME_SITE and (origin is None or not self._own(origin, host)):
            return 403, f"the request comes from another site (Sec-Fetch-Site: {site[:20]!r})"
        if scope["type"] == "http" and scope["method"] in CHANGES and _has_body(headers):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return 415, f"bodies are application/json, got {kind[:50]!r}"
        return 0, ""

    def _own(self, origin: str, host: str) -> bool:
        """Return whether a page's origin is this server, or one that was allowed."""
        if origin.lower().rstrip("/") in self.origins:
            return True
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        return parts.scheme in ("http", "https") and parts.netloc == host.lower()


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _name(host: str) -> str:
    """Return the name or address of a Host header without its port, or "" where it is malformed."""
    try:
        parts = urlsplit(f"//{host.lower()}")
        name, _ = parts.hostname or "", parts.port
    except ValueError:
        return ""
    whole = name if ":" not in name else f"[{name}]"
    return name if host.lower() in (whole, f"{whole}:{parts.port}") else ""
