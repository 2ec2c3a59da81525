"""Put the middleware of this room around an application, in the order in which they must run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from starlette.types import ASGIApp

from agent_forge.server.security.authentication import Authentication
from agent_forge.server.security.bodies import MOST_BYTES, BodyCap
from agent_forge.server.security.guard import LOOPBACK, Guard
from agent_forge.server.security.headers import SafeHeaders, headers
from agent_forge.server.security.keys import KeyRing
from agent_forge.server.security.rates import RateLimit, Rates
from agent_forge.server.security.tickets import Tickets


@dataclass(slots=True, kw_only=True)
class Wall:
    """What stands between a client and the application.

    hosts, origins: see Guard. connect: origins of the other ports of a split service. public,
    mounted: see Authentication. audit: wraps an application so that refusals are recorded too.
    """

    ring: KeyRing
    tickets: Tickets = field(default_factory=Tickets)
    rates: Rates = field(default_factory=Rates)
    hosts: tuple[str, ...] = LOOPBACK
    origins: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    public: tuple[str, ...] = ()
    mounted: Mapping[str, str] = field(default_factory=dict)
    most_bytes: int = MOST_BYTES
    audit: Callable[[ASGIApp], ASGIApp] | None = None

    def around(self, app: ASGIApp) -> ASGIApp:
        """Return the application behind the wall."""
        inner: ASGIApp = RateLimit(app, rates=self.rates)
        inner = Authentication(
            inner, ring=self.ring, tickets=self.tickets, rates=self.rates, public=self.public,
            mounted=self.mounted,
        )  # fmt: skip
        inner = BodyCap(inner, most_bytes=self.most_bytes)
        inner = Guard(inner, hosts=self.hosts, origins=self.origins)
        if self.audit is not None:
            inner = self.audit(inner)
        return SafeHeaders(inner, values=headers(self.connect))
