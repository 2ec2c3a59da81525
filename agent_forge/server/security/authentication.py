"""Let nobody in without a key: a bearer key on requests, that or a ticket on WebSockets.

The key that was shown is in `scope["state"]["key"]` for what comes after. Routes say which scope
they need with `Depends(needs("run"))`; mounted applications are given theirs here by their path.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Annotated
from urllib.parse import parse_qs

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from agent_forge.core.errors import StorageError
from agent_forge.server.security.asgi import headers_of, refuse
from agent_forge.server.security.keys import Key, KeyRing
from agent_forge.server.security.rates import Rates, address_of, too_often
from agent_forge.server.security.tickets import Tickets

BEARER = HTTPBearer(auto_error=False, description="A key of `forge keys create`.")
CHALLENGE = {"www-authenticate": 'Bearer realm="agent-forge"'}
TICKET = "ticket"
log = logging.getLogger("agent_forge")


class Authentication:
    """Answer 401 to whoever shows no valid key.

    public: exact paths that need no key; a path that ends in "/" stands for all below it.
    mounted: path prefix -> scope that everything below it needs.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        ring: KeyRing,
        tickets: Tickets,
        rates: Rates,
        public: Collection[str] = (),
        mounted: Mapping[str, str] | None = None,
    ) -> None:
        self.app, self.ring, self.tickets, self.rates = app, ring, tickets, rates
        self.public = frozenset(public)
        self.folders = tuple(path for path in public if len(path) > 1 and path.endswith("/"))
        self.mounted = dict(mounted or {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its key, or refuse it."""
        if scope["type"] not in ("http", "websocket") or self._is_public(scope):
            await self.app(scope, receive, send)
            return
        address = address_of(scope)
        try:
            key = self._key(scope)
        except StorageError as error:
            log.error("nobody is let in: %s", error)
            message = "this server cannot read its keys; its log says why"
            await refuse(scope, receive, send, 503, message)
            return
        if key is None:
            # Whoever shows a valid key is not kept waiting for the failures of a neighbour.
            if seconds := await self.rates.wait_after_failures(address):
                await too_often(scope, receive, send, seconds)
                return
            await self.rates.count_failure(address)
            message = "show a valid key: `Authorization: Bearer KEY` (see `forge keys create`)"
            await refuse(scope, receive, send, 401, message, headers=CHALLENGE)
            return
        scope.setdefault("state", {})["key"] = key
        scope["state"]["actor"] = f"key:{key.id}"  # the name in the audit log
        needed = next(
            (
                needed
                for prefix, needed in self.mounted.items()
                if scope["path"] == prefix or scope["path"].startswith(f"{prefix}/")
            ),
            "",
        )
        if needed and not key.allows(needed):
            await refuse(scope, receive, send, 403, _lacks(key, needed))
            return
        await self.app(scope, receive, send)

    def _is_public(self, scope: Scope) -> bool:
        path = scope["path"]
        return scope["type"] == "http" and (path in self.public or path.startswith(self.folders))

    def _key(self, scope: Scope) -> Key | None:
        lines = headers_of(scope).getlist("authorization")
        if len(lines) == 1:
            scheme, _, token = lines[0].partition(" ")
            return self.ring.verify(token.strip()) if scheme.lower() == "bearer" else None
        if scope["type"] == "websocket" and not lines:
            values = parse_qs(scope["query_string"].decode("latin-1")).get(TICKET, [])
            key_id = self.tickets.take(values[0]) if len(values) == 1 else ""
            return self.ring.current(key_id) if key_id else None
        return None


def needs(scope: str) -> Callable[..., Key]:
    """Return a dependency: the key of the request, refused with 403 where it lacks `scope`."""

    def key_with_scope(
        connection: HTTPConnection, shown: Annotated[object, Depends(BEARER)]
    ) -> Key:
        del shown  # it documents the scheme; the middleware has verified the key
        return require(connection, scope)

    return key_with_scope


def require(connection: HTTPConnection, scope: str) -> Key:
    """Return the key of a connection. Raises HTTPException 403 where it lacks `scope`."""
    key: Key = connection.scope["state"]["key"]
    if not key.allows(scope):
        raise HTTPException(403, _lacks(key, scope))
    return key


def _lacks(key: Key, scope: str) -> str:
    return f"key {key.id} may {', '.join(key.scopes)}; this needs the scope '{scope}'"


def key_of(request: Request) -> Key:
    """Return the key that the middleware has verified."""
    return request.scope["state"]["key"]  # type: ignore[no-any-return]
