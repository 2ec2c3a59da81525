"""A server of jobs that can be killed at chosen points, for the bench `serve_restarts` and tests.

`Server` starts one in a process of its own, forked from a process that has imported the code and
nothing else, and gives it orders through a pipe: {"do": "submit", "overrides": [...]},
{"do": "cancel", "job": ID}, ... An order to "die" names a point at which the process kills itself:
before_start, after_start, before_stop, after_stop. settings: "boot": the name of the boot it
believes in; "poll_seconds", "grace_seconds", "cpu_jobs".
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from agent_forge.core.errors import ForgeError
from agent_forge.pipeline.catalogue import phases
from agent_forge.server.database import Database
from agent_forge.server.launchers import Handle, Launch, processes
from agent_forge.server.launchers.local import LocalLauncher
from agent_forge.server.settings import JobSettings
from agent_forge.server.supervisor import Supervisor

DATABASE = "forge.sqlite"
WAIT_SECONDS = 60.0
ROOT = Path(__file__).resolve().parents[2]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["__main__", "scripts.bench.serve_child"])
phases()  # loads their rooms, which every server needs


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


class Server:
    """A server process in `root`; command: what stands for forge. settings: see above."""

    def __init__(self, root: Path, command: Sequence[str], **settings: Any) -> None:
        os.environ["PYTHONPATH"] = str(ROOT)
        settings = {"poll_seconds": 0.05, "grace_seconds": 10.0, **settings}
        self._pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(theirs, root, list(command), settings))
        self.process.start()
        theirs.close()
        self._answer()

    def order(self, **order: Any) -> dict[str, Any]:
        """Give an order, return the answer; {} from a server that died of it."""
        try:
            self._pipe.send(order)
        except OSError:
            return {}
        return self._answer()

    def kill(self) -> None:
        """End it with SIGKILL, where it has not ended itself."""
        self.process.kill()
        self.process.join()
        self.process.close()
        self._pipe.close()

    def died(self) -> None:
        """Wait until it has ended itself."""
        self.process.join(WAIT_SECONDS)

    def close(self) -> None:
        """Let it end in order."""
        self.order(do="end")
        self.process.join(WAIT_SECONDS)
        self.kill()

    def _answer(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            return {}
        return answer


def serve(pipe: Connection, root: Path, command: list[str], settings: dict[str, Any]) -> None:
    """Be a server until the order to end."""
    if settings.get("boot"):
        processes.boot_id = lambda: settings["boot"]  # type: ignore[assignment]
    launcher = DyingLauncher(command, gives_way=False)
    chosen = {name: settings[name] for name in ("poll_seconds", "grace_seconds", "cpu_jobs")
              if name in settings}  # fmt: skip
    database = Database(root / DATABASE)
    # On a busy machine a job of background priority would not come to run for a long time.
    job_settings = JobSettings(gpus=[], background=False, **chosen)
    supervisor = Supervisor(database, root, launcher, settings=job_settings)
    supervisor.start()
    pipe.send({"ready": os.getpid()})
    while (order := pipe.recv())["do"] != "end":
        launcher.die = order.get("point", launcher.die)
        try:
            pipe.send(_obeyed(supervisor, order))
        except ForgeError as error:
            pipe.send({"error": str(error)})
    supervisor.close()
    database.close()
    pipe.send({})


def _obeyed(supervisor: Supervisor, order: dict[str, Any]) -> dict[str, Any]:
    """Carry out an order; return the answer."""
    name = order["do"]
    if name == "submit":
        return asdict(supervisor.submit(order.get("command", "train"), order["overrides"]))
    if name in ("cancel", "pause", "resume", "get"):
        return asdict(getattr(supervisor, name)(order["job"]))
    if name == "usage":
        handles = len(os.listdir("/proc/self/fd"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"handles": handles, "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE")}
    return {}
