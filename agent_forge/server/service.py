"""The parts of one server process, put together once and shared by all routes.

`state` holds the keys, the database and the jobs; `parts` says which of the four doors this process
is. The control part owns the database; in a split service the other parts read it, and forward what
changes something.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from agent_forge.server.client_settings import RUN_ALL, ClientSettings, Config, read_config
from agent_forge.server.composer.client import Composer
from agent_forge.server.data_sources import DataSources
from agent_forge.server.security.keys import KeyRing
from agent_forge.server.security.rates import Rates
from agent_forge.server.security.tickets import Tickets

if TYPE_CHECKING:
    from agent_forge.server.checkpoints import Registry
    from agent_forge.server.jobs import Job
    from agent_forge.server.live.hub import Hub
    from agent_forge.server.supervisor import Supervisor

CONTROL, CHAT, UPDATES, MODELS = "control", "chat", "updates", "models"
PARTS = (CONTROL, CHAT, UPDATES, MODELS)
DATABASE = "forge.sqlite"
RESERVED = "new-"  # begins the id of a model that a job is still making; the job's id follows


@dataclass(slots=True, kw_only=True)
class Service:
    """What routes use.

    imports: names of models that may be imported -> path. control: host and port where the
    control part listens, which other parts forward to. audit: wraps the application in the audit log. mcp_rooms:
    what MCP offers, none by default; mcp_repository: its git repository of models. names, origins:
    what Host and Origin headers may say; the wall checks them, and MCP once more.
    """

    state: Path
    supervisor: "Supervisor"
    hub: "Hub"
    ring: KeyRing
    composer: Composer = field(default_factory=Composer)
    data: DataSources = field(default_factory=DataSources)
    imports: dict[str, str] = field(default_factory=dict)
    tickets: Tickets = field(default_factory=Tickets)
    rates: Rates = field(default_factory=Rates)
    parts: tuple[str, ...] = PARTS
    control: tuple[str, int] = ("127.0.0.1", 8083)
    audit: Callable[[ASGIApp], ASGIApp] | None = None
    model_memory_bytes: int = 0  # what loaded models may hold together; 0: half of the machine's
    mcp_rooms: tuple[str, ...] = ()
    mcp_repository: str = ""
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    @property
    def registry(self) -> "Registry":
        """Return the checkpoints that the jobs and the watched directories hold."""
        return self.supervisor.registry

    def start_job(
        self,
        phase: str,
        config: Config,
        *,
        extra: Sequence[str] = (),
        sources: Sequence[str] = (),
        once: str | None = None,
    ) -> "Job":
        """Queue a phase or run-all with a client's config, and return the job.

        extra: overrides that stand before the ones in `config`. sources: ids of checkpoints beside
        those in `config`. once: an idempotency key.
        Raises ConfigError or CheckpointError in one line that a client can act on.
        """
        name = RUN_ALL if phase.replace("_", "-") == RUN_ALL else phase
        settings = read_config(name, config)
        overrides = [*read_config(name, list(extra)).overrides, *settings.overrides]
        ids, hidden = self.resolve(settings)
        ids = [*(self.checkpoint_id(one) for one in sources), *ids]
        return self.supervisor.submit(
            name, overrides, sources=ids, hidden_overrides=hidden, idempotency_key=once
        )

    def resolve(self, settings: ClientSettings) -> tuple[list[str], list[str]]:
        """Return (ids of the sources, settings with paths that no client sees)."""
        ids: list[str] = []
        rest = ClientSettings([], {}, settings.data)
        for key, names in settings.checkpoints.items():
            if key == "sources" or key.endswith(".sources"):
                ids += [self.checkpoint_id(name) for name in names]
            else:
                rest.checkpoints[key] = [self.checkpoint_id(name) for name in names]
        path_of = self.registry.path_of
        return ids, rest.resolved(lambda one: str(path_of(one)), self.data.spec)

    def checkpoint_id(self, name: str) -> str:
        """Return the id of a checkpoint, of one that a job has made, or is still making.

        Raises CheckpointError where the job has no result yet.
        """
        from agent_forge.core.errors import CheckpointError

        if not name.startswith(RESERVED):
            return name
        job = self.supervisor.get(name.removeprefix(RESERVED))
        result_id = job.results.get("checkpoint_id") or self.registry.id_of(Path(job.out))
        if not result_id:
            raise CheckpointError(f"model {name} is {job.state}: it has no checkpoint yet")
        return str(result_id)
