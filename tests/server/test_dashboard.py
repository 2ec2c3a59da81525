"""The dashboard in a real browser: a run from its start to its end, gaps, keys, themes, no request outside.

One Chromium and one server for the whole file; `browser.mjs` plays each scene in a fresh context and
prints what it saw as JSON, which the tests here judge. Skipped where Node, its modules, the build or
a Chromium is missing.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from agent_forge.server import pages
from agent_forge.server.database import Database
from agent_forge.server.doors import open_doors
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.live.hub import Hub
from agent_forge.server.security.keys import KeyRing
from agent_forge.server.security.rates import Rates
from agent_forge.server.service import Service
from agent_forge.server.serving import ServeSettings, application
from agent_forge.server.supervisor import Supervisor
from tests.server.conftest import end_jobs, quick_settings

TRAINER = Path(__file__).with_name("stub_trainer.py")
SCENES = Path(__file__).with_name("browser.mjs")
HOME = pages.DIST.parent
SCENE_SECONDS = 240


def chromium() -> str:
    """Return a Chromium of this machine, or ""."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("FORGE_CHROMIUM") or next(filter(None, map(shutil.which, names)), "")


def missing() -> str:
    """Return what a browser test lacks here, "" when nothing is missing."""
    if not shutil.which("node"):
        return "Node is not installed"
    if not (HOME / "node_modules" / "playwright-core").is_dir():
        return "the dashboard's modules are not installed; `make dashboard` fetches them"
    if not (pages.DIST / "index.html").is_file():
        return "the dashboard is not built; `make dashboard` builds it"
    return "" if chromium() else "there is no Chromium; FORGE_CHROMIUM may name one"


pytestmark = [
    pytest.mark.skipif(missing() != "", reason=missing()),
    pytest.mark.timeout(SCENE_SECONDS + 60),
]


class Server:
    """A server on a free port, in a thread, whose jobs are stubs that train."""

    def __init__(self, state: Path) -> None:
        self.database = Database(state / "forge.sqlite")
        command = [sys.executable, str(TRAINER)]
        self.supervisor = Supervisor(
            self.database, state, LocalLauncher(command), settings=quick_settings()
        )
        self.supervisor.start()
        self.ring = KeyRing(state)
        self.key_id, self.key = self._new_key()
        hub = Hub(self.supervisor, self.supervisor.subscribe)
        service = Service(
            state=state, supervisor=self.supervisor, ring=self.ring, hub=hub,
            rates=Rates(100_000, 100),
        )  # fmt: skip
        app = application(service, ServeSettings(state=state), open_doors(service))
        config = uvicorn.Config(app, log_level="warning", ws="websockets-sansio")
        self.server = uvicorn.Server(config)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],))
        self.hub = hub

    def _new_key(self) -> tuple[str, str]:
        key, token = self.ring.create("browser", ["admin"])
        return key.id, token

    def start(self) -> None:
        """Serve, and wait until it does."""
        self.thread.start()
        end = time.monotonic() + 60
        while not self.server.started:
            assert time.monotonic() < end, "the server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """End the jobs and the server."""
        end_jobs(self.supervisor)
        self.hub.stop_streams()
        self.server.should_exit = True
        self.thread.join(30)
        self.listener.close()
        self.supervisor.close()
        self.database.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with no jobs yet."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", str(TRAINER.parents[2]))
    opened = Server(tmp_path_factory.mktemp("dashboard"))
    opened.start()
    yield opened
    opened.stop()
    patch.undo()


def play(server: Server, scene: str, key: str | None = None) -> dict[str, Any]:
    """Return what a scene has seen. Fails with the browser's own words."""
    environment = {**os.environ, "FORGE_CHROMIUM": chromium()}
    done = subprocess.run(
        ["node", str(SCENES), scene, server.url, server.key if key is None else key, str(HOME)],
        capture_output=True, text=True, timeout=SCENE_SECONDS, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert seen["outside"] == [], "a request left this machine"
    assert seen["errors"] == [], "the page has thrown"
    return seen


def test_a_run_is_started_followed_left_paused_resumed_and_cancelled(server: Server) -> None:
    seen = play(server, "flow")
    assert seen["started"].startswith("Running")
    # The tab was closed and opened again: nothing is lost, and it goes on.
    assert seen["points_after"] >= seen["points_before"] > 0
    assert seen["points_later"] > seen["points_after"]
    assert seen["paused"] == "Paused"
    assert seen["resumed"] == "Running"
    # A resumed run goes on in the same curve.
    assert seen["points_resumed"] >= seen["points_paused"]
    assert seen["cancelled"] == "Cancelled"


def test_a_value_that_is_not_a_number_is_a_gap_with_a_mark(server: Server) -> None:
    seen = play(server, "gap")
    assert seen["gaps"] == 1
    assert "not a number" in seen["says"]
    assert seen["points"] == 20
    assert seen["verdict"] == "Done"
    assert "keeps 98.4% of tools [96.8, 99.7]" in seen["keeps"]


def test_a_refused_key_leads_to_the_first_page_which_says_why(server: Server) -> None:
    key, token = server.ring.create("short", ["read"])
    server.ring.revoke(key.id)
    seen = play(server, "refused", token)
    assert "expired" in seen["says"]
    assert seen["kept"] is None


def test_a_link_signs_in_and_its_key_does_not_stay_in_the_address(server: Server) -> None:
    seen = play(server, "link")
    assert "key=" not in seen["address"]
    assert seen["live"] == "Live"
    assert seen["in_local_storage"] is False


def test_every_page_is_clean_for_axe_in_both_themes(server: Server) -> None:
    seen = play(server, "axe")
    assert seen["violations"] == []
    assert seen["looked_at"] == 12


def test_no_page_is_wider_than_a_small_phone(server: Server) -> None:
    assert play(server, "narrow")["wide"] == []


def test_a_run_is_started_with_the_keyboard_alone(server: Server) -> None:
    assert play(server, "keyboard")["state"] in ("Running", "Waiting", "Done")
