"""A server with the dashboard whose jobs are played: for pictures, a bench, and tests in a browser.

Everything but the jobs' processes is the service as `forge serve` runs it: database, supervisor,
keys, wall, pages, chat. Called as a program it serves until it is ended, and prints one line of
JSON with its address and a key:

    python -m scripts.dashboard_server STATE PORT PROGRAM [WATCHED-FOLDER ...]

PROGRAM is a Python file that is called in the place of forge.
"""

import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from agent_forge.server.database import Database
from agent_forge.server.doors import open_doors
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.listening import bound
from agent_forge.server.live.hub import Hub
from agent_forge.server.security.keys import KeyRing
from agent_forge.server.security.rates import Rates
from agent_forge.server.service import Service
from agent_forge.server.serving import ServeSettings, application
from agent_forge.server.settings import JobSettings
from agent_forge.server.supervisor import Supervisor

START_SECONDS, STOP_SECONDS = 60.0, 2
QUICK = {"poll_seconds": 0.02, "grace_seconds": 20.0, "check_seconds": 0.2}


class DashboardServer:
    """A server on a port of this machine, in a thread.

    state: its folder. program: the command that runs jobs. watch: folders whose runs and
    checkpoints are shown. port: 0 for any that is free.
    """

    def __init__(
        self, state: Path, program: Sequence[str], *, watch: Sequence[Path] = (), port: int = 0
    ) -> None:
        self.database = Database(state / "forge.sqlite")
        settings = JobSettings(gpus=[], watch=list(watch), **QUICK)  # type: ignore[arg-type]
        launcher = LocalLauncher(list(program), gives_way=False)
        self.supervisor = Supervisor(self.database, state, launcher, settings=settings)
        self.supervisor.start()
        self.ring = KeyRing(state)
        _, self.key = self.ring.create("browser", ["admin"])
        self.hub = Hub(self.supervisor, self.supervisor.subscribe)
        service = Service(
            state=state, supervisor=self.supervisor, ring=self.ring, hub=self.hub,
            rates=Rates(100_000, 100),
        )  # fmt: skip
        app = application(service, ServeSettings(state=state), open_doors(service))
        config = uvicorn.Config(
            app, log_level="warning", ws="websockets-sansio", timeout_graceful_shutdown=STOP_SECONDS
        )
        self.server = uvicorn.Server(config)
        self.listener = bound("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.run, args=([self.listener],), daemon=True)

    def start(self) -> None:
        """Serve, and wait until it does. Raises TimeoutError."""
        self.thread.start()
        end = time.monotonic() + START_SECONDS
        while not self.server.started:
            if time.monotonic() > end:
                raise TimeoutError(f"no server after {START_SECONDS:.0f} s")
            time.sleep(0.02)

    def stop(self) -> None:
        """End the jobs and the server."""
        self._end_jobs()
        self.hub.stop_streams()
        self.server.should_exit = True
        self.thread.join(30)
        self.listener.close()
        self.supervisor.close()
        self.database.close()

    def _end_jobs(self) -> None:
        """End every job, by force where it does not stop."""
        self.supervisor.settings.grace_seconds = 0.5
        self.supervisor.set_queue(paused=True)
        for job in self.supervisor.list():
            if job.active and job.origin == "service":
                self.supervisor.cancel(job.id)
        end = time.monotonic() + START_SECONDS
        while self.supervisor.queue().active and time.monotonic() < end:
            time.sleep(0.02)


def main() -> int:
    """Serve until the process is ended."""
    state, port, program, *watch = sys.argv[1:]
    server = DashboardServer(
        Path(state), [sys.executable, program], watch=[Path(one) for one in watch], port=int(port)
    )
    server.start()
    print(json.dumps({"url": server.url, "key": server.key}), flush=True)
    server.thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
