"""MCP over streamable HTTP: an ASGI application with a key, and Host and Origin checked.

`forge mcp --http` runs it alone; `forge serve` mounts it and enters its lifespan, because the
session manager's tasks belong to the process that serves. A key is sent as a bearer token; who
verifies it is given in `verify`, so that the service's own keys serve here too.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge.core.errors import ConfigError, StorageError
from agent_forge.server.mcp.offer import Offer, make_server

if TYPE_CHECKING:
    from mcp.server.auth.provider import AccessToken
    from starlette.applications import Starlette

PATH = "/mcp"
SCOPE = "mcp"
TOKEN_VARIABLE = "FORGE_MCP_TOKEN"
MAX_BODY_BYTES = 2**20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# token -> the name of its owner, or None where it does not hold
Verify = Callable[[str], str | None]


@dataclass(slots=True)
class HttpApplication:
    """An ASGI application, and the context in which its sessions run."""

    app: "Starlette"
    _manager: Any

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the sessions; the parent application enters this once."""
        async with self._manager.run():
            yield


def application(
    offer: Offer,
    verify: Verify | None,
    *,
    hosts: Sequence[str],
    origins: Sequence[str] = (),
    path: str = PATH,
) -> HttpApplication:
    """Return the application of an offer.

    verify: None serves without a key, which only a mounting application does that checks its own.
    hosts, origins: what the Host and Origin headers may say; "name:*" allows every port.
    """
    from mcp.server.transport_security import TransportSecuritySettings

    options: dict[str, Any] = {}
    if verify is not None:
        from mcp.server.auth.settings import AuthSettings
        from pydantic import AnyHttpUrl

        options["token_verifier"] = _Verifier(verify)
        # There is no authorisation server: keys are made by hand, and this address only names us.
        options["auth"] = AuthSettings(
            issuer_url=AnyHttpUrl(f"http://{hosts[0].removesuffix(':*')}"),
            resource_server_url=None,
            required_scopes=[SCOPE],
        )
    server = make_server(offer, **options)
    security = TransportSecuritySettings(allowed_hosts=list(hosts), allowed_origins=list(origins))
    app = server.streamable_http_app(
        streamable_http_path=path,
        transport_security=security,
        max_request_body_size=MAX_BODY_BYTES,
    )
    return HttpApplication(app, server.session_manager)


def local_hosts() -> list[str]:
    """Return the names of this machine for itself, with every port."""
    return [f"{name}:*" for name in LOOPBACK] + list(LOOPBACK)


class _Verifier:
    """What the mcp package asks about a bearer token."""

    def __init__(self, verify: Verify) -> None:
        self.verify = verify

    async def verify_token(self, token: str) -> "AccessToken | None":
        """Return who a token belongs to, or None."""
        from mcp.server.auth.provider import AccessToken

        owner = self.verify(token)
        return None if owner is None else AccessToken(token=token, client_id=owner, scopes=[SCOPE])


def one_token(token: str) -> Verify:
    """Return what accepts one token, compared by its hash in constant time."""
    digest = hashlib.sha256(token.encode()).digest()

    def verify(offered: str) -> str | None:
        same = hmac.compare_digest(hashlib.sha256(offered.encode()).digest(), digest)
        return "token" if same else None

    return verify


def token_of(file: Path) -> tuple[str, bool]:
    """Return the token of this machine, and whether it was made now.

    It comes from FORGE_MCP_TOKEN, else from a file that only its owner can read. Raises ConfigError
    for a file that others can read, StorageError where it cannot be written.
    """
    from_environment = os.environ.get(TOKEN_VARIABLE, "")
    if from_environment:
        return from_environment, False
    if file.is_file():
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others; chmod 600 it, or make a new token")
        return file.read_text(encoding="utf-8").strip(), False
    token = f"forge_mcp_{secrets.token_urlsafe(32)}"
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(token + "\n")
    except OSError as error:
        raise StorageError(f"cannot write the token file {file}: {error}") from None
    return token, True
