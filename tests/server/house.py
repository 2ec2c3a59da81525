"""A whole server for tests: stub jobs, the real database, supervisor, routes and wall."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from starlette.testclient import TestClient, WebSocketTestSession

from agent_forge.server.app import Door
from agent_forge.server.composer.client import Composer
from agent_forge.server.data_sources import DataSources
from agent_forge.server.database import Database
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.live.hub import Hub
from agent_forge.server.security.keys import KeyRing
from agent_forge.server.security.rates import Rates
from agent_forge.server.service import Service
from agent_forge.server.serving import ServeSettings, application
from agent_forge.server.supervisor import Supervisor
from tests.server.conftest import end_jobs, quick_settings

FORGE = Path(__file__).with_name("stub_forge.py")
HOME = "http://127.0.0.1:8083"


class House:
    """A server in this process, and a client with a key of every scope."""

    def __init__(self, service: Service, client: TestClient, token: str) -> None:
        self.service, self.client, self.token = service, client, token

    def get(self, path: str, **options: Any) -> Any:
        """Return the JSON of a path. Fails unless it answers 200."""
        answer = self.client.get(path, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any = None, status: int = 202, **options: Any) -> Any:
        """Return the JSON of a request. Fails unless it answers `status`."""
        answer = self.client.post(path, json=body, **options)
        assert answer.status_code == status, answer.text
        return answer.json()

    def refused(self, path: str, body: Any, status: int = 422) -> str:
        """Return the message of a refusal."""
        return str(self.post(path, body, status)["error"]["message"])

    def socket(self, path: str = "/ws") -> WebSocketTestSession:
        """Open a WebSocket of the server with the key."""
        return self.client.websocket_connect(f"ws://127.0.0.1:8083{path}")


@contextmanager
def house(
    state: Path, doors: tuple[Door, ...] = (), watch: tuple[Path, ...] = (), **changes: Any
) -> Iterator[House]:
    """Open a server whose jobs are stubs. changes: fields of its Service."""
    database = Database(state / "forge.sqlite")
    supervisor = Supervisor(
        database, state, LocalLauncher([sys.executable, str(FORGE)]),
        settings=quick_settings(watch=list(watch)),
    )  # fmt: skip
    supervisor.start()
    ring = KeyRing(state)
    _, token = ring.create("tests", ["admin"])
    values = {
        "data": DataSources({"mine": str(state)}), "rates": Rates(100_000, 100_000),
        "composer": Composer(early=False),
    } | changes  # fmt: skip
    service = Service(
        state=state, supervisor=supervisor, ring=ring,
        hub=Hub(supervisor, supervisor.subscribe), **values,
    )  # fmt: skip
    app = application(service, ServeSettings(state=state), doors)
    client = TestClient(app, base_url=HOME, headers={"authorization": f"Bearer {token}"})
    try:
        # Jobs give way to everything else, so on a busy machine they would outlast the tests.
        with patch("agent_forge.server.launchers.local.give_way"), client:
            yield House(service, client, token)
    finally:
        end_jobs(supervisor)
        supervisor.close()
        database.close()
