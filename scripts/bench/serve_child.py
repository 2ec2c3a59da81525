"""A server of jobs that can be killed at chosen points, for the bench `serve_restarts` and tests.

    python scripts/bench/serve_child.py ROOT JOB_COMMAND_AS_JSON SETTINGS_AS_JSON

Reads orders as JSON lines on standard input ({"do": "submit", "overrides": [...]}, {"do": "cancel",
"job": ID}, ...) and answers each with a JSON line. An order to "die"
names a point at which the process kills itself: before_start, after_start, before_stop, after_stop.
settings: "boot": the name of the boot it
believes in; "poll_seconds", "grace_seconds", "cpu_jobs".
"""

import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent_forge.core.errors import ForgeError
from agent_forge.server.database import Database
from agent_forge.server.launchers import Handle, Launch, processes
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.settings import JobSettings
from agent_forge.server.supervisor import Supervisor

DATABASE = "forge.sqlite"


class DyingLauncher(LocalLauncher):
    """Kills its process before or after it starts or stops a job."""

    die = ""

    def submit(self, launch: Launch) -> Handle:
        """Start the job, or die."""
        self._die_at("before_start")
        handle = super().submit(launch)
        self._die_at("after_start")
        return handle

    def cancel(self, launch: Launch, handle: Handle, *, force: bool) -> None:
        """Stop the job, or die."""
        self._die_at("before_stop")
        super().cancel(launch, handle, force=force)
        self._die_at("after_stop")

    def _die_at(self, point: str) -> None:
        if self.die == point:
            os.kill(os.getpid(), signal.SIGKILL)


def main(root: Path, command: list[str], settings: dict[str, Any]) -> None:
    """Serve until standard input ends."""
    if settings.get("boot"):
        processes.boot_id = lambda: settings["boot"]  # type: ignore[assignment]
    launcher = DyingLauncher(command, gives_way=False)
    chosen = {name: settings[name] for name in ("poll_seconds", "grace_seconds", "cpu_jobs")
              if name in settings}  # fmt: skip
    database = Database(root / DATABASE)
    supervisor = Supervisor(database, root, launcher, settings=JobSettings(gpus=[], **chosen))
    supervisor.start()
    _answer({"ready": os.getpid()})
    for line in sys.stdin:
        try:
            order = json.loads(line)
            launcher.die = order.get("point", launcher.die)
            _answer(obey(supervisor, order))
        except ForgeError as error:
            _answer({"error": str(error)})
    supervisor.close()
    database.close()


def obey(supervisor: Supervisor, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order; return the answer."""
    name = order["do"]
    if name == "submit":
        job = supervisor.submit(order.get("command", "train"), order["overrides"])
        return asdict(job)
    if name in ("cancel", "pause", "resume", "get"):
        return asdict(getattr(supervisor, name)(order["job"]))
    if name == "usage":
        handles = len(os.listdir("/proc/self/fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"handles": handles, "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE")}
    return {"jobs": [asdict(job) for job in supervisor.list()]}


def _answer(content: dict[str, Any]) -> None:
    print(json.dumps(content, default=str), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
