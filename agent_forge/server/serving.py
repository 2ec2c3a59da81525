"""Serve: open the parts, bind the port, run until a signal, and leave every job running.

A socket is bound before anything is opened, so that a port that is taken is one line. On a signal
the streams end first, because a server waits for its connections before it stops.
"""

import asyncio
import contextlib
import json
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from agent_forge.core.errors import ConfigError
from agent_forge.server.app import Door, create_app, protected
from agent_forge.server.audit import AuditLog, CommandHeads
from agent_forge.server.audit_middleware import AuditMiddleware
from agent_forge.server.checkpoints import Registry
from agent_forge.server.data_sources import DataSources
from agent_forge.server.database import Database, Readers
from agent_forge.server.doors import open_doors
from agent_forge.server.launchers.chosen import read_launcher
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.listening import bound, check_host, reachable
from agent_forge.server.live.hub import Hub
from agent_forge.server.mcp import check_rooms
from agent_forge.server.reading import JobReader, wait_for_database
from agent_forge.server.security.bodies import MOST_BYTES
from agent_forge.server.security.guard import LOOPBACK
from agent_forge.server.security.keys import KeyRing, first_key
from agent_forge.server.security.rates import REQUESTS_PER_MINUTE, Rates
from agent_forge.server.security.wall import Wall
from agent_forge.server.service import CONTROL, DATABASE, PARTS, Service
from agent_forge.server.settings import JobSettings
from agent_forge.server.supervisor import Supervisor

AUDIT = "audit.jsonl"
STOP_SECONDS = 10  # how long answers that are under way may take to end
POLL_SECONDS = 0.25  # the wait between looks for other processes' events


@dataclass(slots=True, kw_only=True)
class ServeSettings:
    """How a server is run.

    state: its keys, database and jobs. watch: directories whose runs and checkpoints are shown.
    data, imports: name -> path. mcp_rooms: what MCP offers, none by default; mcp_repository: its git
    repository of models. hosts, origins: further names of this server and pages that may use it.
    allow_network: listen on more than this machine. parts: the doors of this process; port: of this
    process; control_port: of the process that owns the database. launcher: a file that says where
    jobs run; None: on this machine.
    """

    state: Path = Path("outputs/.server")
    watch: list[Path] = field(default_factory=lambda: [Path("outputs")])
    host: str = "127.0.0.1"
    port: int = 8083
    control_port: int = 8083
    parts: tuple[str, ...] = PARTS
    data: dict[str, str] = field(default_factory=dict)
    imports: dict[str, str] = field(default_factory=dict)
    mcp_rooms: tuple[str, ...] = ()
    mcp_repository: str = ""
    launcher: Path | None = None
    audit_heads: str = ""  # a command that gets each new head of the audit log
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    connect: tuple[str, ...] = ()
    allow_network: bool = False
    requests_per_minute: int = REQUESTS_PER_MINUTE
    most_bytes: int = MOST_BYTES
    model_memory_bytes: int = 0  # what loaded models may hold together; 0: half of the machine's

    @property
    def names(self) -> tuple[str, ...]:
        """Return what this server may be called in a Host header."""
        return (*LOOPBACK, self.host, *self.hosts)

    def check(self) -> None:
        """Raise ConfigError where the settings would open the server to others by mistake, or name
        a room of MCP or a launcher that cannot be had.
        """
        if not self.allow_network:
            check_host(self.host, "--host", "and name the server with --allow-host NAME")
        for origin in self.origins:
            if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
                raise ConfigError(f"--allow-origin {origin}: write it as https://name:port")
        if self.mcp_rooms:
            check_rooms(self.mcp_rooms, self.mcp_repository, "--mcp-registry")
        if self.launcher is not None:
            read_launcher(self.launcher)


@contextlib.contextmanager
def opened(settings: ServeSettings) -> Iterator[Service]:
    """Open the parts of one process, and close them; jobs go on.

    Raises LockedError when another server has the state directory.
    """
    launcher = LocalLauncher() if settings.launcher is None else read_launcher(settings.launcher)
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    watch = [path.absolute() for path in settings.watch]
    state = settings.state.absolute()
    with ExitStack() as stack:
        if CONTROL in settings.parts:
            database = Database(state / DATABASE)
            stack.callback(database.close)
            supervisor: Any = Supervisor(
                database, state, launcher, settings=JobSettings(watch=watch)
            )
            supervisor.start()
            stack.callback(supervisor.close)
            hub = Hub(supervisor, supervisor.subscribe)
        else:
            wait_for_database(state / DATABASE)
            readers: Any = Readers(state / DATABASE)
            stack.callback(readers.close_readers)
            supervisor = JobReader(readers, Registry(readers, [state / "jobs", *watch]))
            hub = Hub(supervisor, look_seconds=POLL_SECONDS)
        yield Service(
            state=state, supervisor=supervisor, hub=hub, ring=KeyRing(state),
            data=DataSources(settings.data), imports=settings.imports, parts=settings.parts,
            rates=Rates(settings.requests_per_minute), control=(reachable(settings.host), settings.control_port),
            audit=_audit(state, settings.audit_heads), model_memory_bytes=settings.model_memory_bytes,
            mcp_rooms=settings.mcp_rooms, mcp_repository=settings.mcp_repository,
            names=settings.names, origins=settings.origins,
        )  # fmt: skip


def _audit(state: Path, heads_command: str) -> Callable[[ASGIApp], ASGIApp]:
    """Return what puts the audit log of the state directory around an application.

    heads_command: gets each new head of the log on its standard input; "" for none.
    Raises ConfigError where the command cannot be read.
    """
    try:
        command = shlex.split(heads_command)
    except ValueError as error:
        raise ConfigError(f"--audit-heads {heads_command}: {error}") from None
    log = AuditLog(state / AUDIT, heads=[CommandHeads(command)] if command else [])

    def around(app: ASGIApp) -> ASGIApp:
        audited: ASGIApp = AuditMiddleware(app, log)
        return audited

    return around


def application(service: Service, settings: ServeSettings, doors: Sequence[Door]) -> ASGIApp:
    """Return the whole application of a process."""
    wall = Wall(
        ring=service.ring, tickets=service.tickets, rates=service.rates,
        hosts=settings.names, origins=settings.origins,
        connect=settings.connect, most_bytes=settings.most_bytes,
        audit=service.audit,
    )  # fmt: skip
    return protected(create_app(service, doors), wall, doors)


def serve(settings: ServeSettings, *, as_json: bool = False) -> None:
    """Serve until a signal. Raises ConfigError when the port is taken or the host is refused."""
    settings.check()
    listener = bound(settings.host, settings.port)
    with listener, opened(settings) as service:
        if CONTROL in settings.parts and (line := first_key(
            service.ring, terminal=sys.stderr.isatty() and not as_json
        )):  # fmt: skip
            print(f"forge serve: {line}", file=sys.stderr, flush=True)
        doors = open_doors(service)
        app = application(service, settings, doors)
        config = uvicorn.Config(
            app, access_log=False, log_level="warning", server_header=False, lifespan="on",
            ws="websockets-sansio", ws_max_size=settings.most_bytes, proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )  # fmt: skip
        server = _Server(config, service.hub, _announcement(settings, listener, as_json))
        asyncio.run(server.serve([listener]))


def schema(settings: ServeSettings) -> dict[str, Any]:
    """Return the OpenAPI description of a server with these settings, without opening a port."""
    with opened(settings) as service:
        return create_app(service, open_doors(service)).openapi()


class _Server(uvicorn.Server):
    """uvicorn, which ends streams before it waits for them, and leaves signals to `forge`."""

    def __init__(self, config: uvicorn.Config, hub: Hub, announcement: str) -> None:
        super().__init__(config)
        self.hub, self.announcement = hub, announcement

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say where."""
        await super().startup(sockets)
        if self.started:
            print(self.announcement, file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then stop."""
        self.hub.stop_streams()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at the first signal; at the second, without waiting for answers."""
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = True


def _announcement(settings: ServeSettings, listener: socket.socket, as_json: bool) -> str:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{port}"
    if as_json:
        return json.dumps({"event": "serving", "url": url, "parts": list(settings.parts)})
    return f"forge serve: {', '.join(settings.parts)} on {url} (jobs go on when it stops)"
