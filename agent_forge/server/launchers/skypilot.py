"""Run jobs on SkyPilot's clusters, by its `sky` command.

    SkyLauncher(task={"resources": {"accelerators": "A100:1"}, "file_mounts": {...}})

SkyPilot lives in an environment of its own, because it pins other versions of what the service
needs; only its command has to be on the PATH. Each attempt gets a cluster of its own, which SkyPilot
takes down when the attempt has ended. `root` has to be the same directory on the clusters and here:
the task's `file_mounts` or volumes see to that.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from agent_forge.checkpoint import atomic
from agent_forge.core.errors import StorageError
from agent_forge.server.launchers import Handle, Launch, cluster
from agent_forge.server.launchers.cluster import ClusterLauncher, answer, require_tool, silence

HINT = "install SkyPilot in an environment of its own and put its `sky` on the PATH"
# States of a cluster's job in `sky queue` in which it has, or may get, processes.
LIVING = re.compile(r"\b(INIT|PENDING|SETTING_UP|RUNNING)\b")
IDLE_MINUTES = "5"  # before a cluster whose job has ended is taken down
# A `sky launch` has this long to end by itself after its job has ended.
LAUNCH_SECONDS = 5.0


class SkyLauncher(ClusterLauncher):
    """Launch attempts with `sky launch`.

    task: SkyPilot's task but for `name` and `run`: resources, setup, file_mounts, envs.
    """

    name = "skypilot"

    def __init__(
        self,
        command: Sequence[str] = ("python", "-m", "agent_forge"),
        *,
        task: Mapping[str, Any] | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(command, **shared)
        self.task = dict(task or {})
        self._launching: dict[str, subprocess.Popen[bytes]] = {}

    def check(self) -> None:
        """Raise ConfigError where the `sky` command is missing."""
        require_tool("sky", HINT)

    def submit(self, launch: Launch) -> Handle:
        """Begin `sky launch`, which may take minutes. Raises ConfigError, StorageError."""
        self.check()
        self.prepare(launch)
        run = shlex.join(
            ["python", "-m", "agent_forge.server.launchers.node", str(launch.directory),
             launch.token]
        )  # fmt: skip
        task = {**self.task, "name": _name(launch), "run": run}
        file = launch.directory / f"{launch.token}.sky.yaml"
        atomic.write_bytes(file, yaml.safe_dump(task, sort_keys=False).encode())
        command = ["sky", "launch", "--cluster", _name(launch), "--detach-run", "--yes", "--down",
                   "--idle-minutes-to-autostop", IDLE_MINUTES, str(file)]  # fmt: skip
        try:
            with launch.log.open("ab") as log:
                self._launching[launch.token] = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise StorageError(f"cannot start sky: {error}") from error
        return {"cluster": _name(launch)}

    def find(self, launch: Launch) -> Handle | None:
        """Return the handle of the attempt's cluster, where SkyPilot has it."""
        if self._has_cluster(launch) or launch.exit_file.exists():
            return {"cluster": _name(launch)}
        return None

    def is_known(self, launch: Launch, handle: Handle) -> bool:
        """Return whether the cluster is being launched, or its job runs or waits."""
        starting = self._launching.get(launch.token)
        if starting is not None:
            if starting.poll() is None:
                return True
            del self._launching[launch.token]
            if starting.returncode:  # its log says why
                return False
        if silence(launch) < cluster.FRESH_SECONDS:
            return True
        if not self._has_cluster(launch):
            return False
        return LIVING.search(answer(["sky", "queue", handle["cluster"]])) is not None

    def end(self, launch: Launch, handle: Handle) -> None:
        """Take the cluster down, and with it all that runs there."""
        self._end_launching(launch, 0.0)
        if self._has_cluster(launch):
            answer(["sky", "down", "--yes", handle["cluster"]])

    def sweep(self, launch: Launch, handle: Handle) -> int:
        """End the attempt's `sky launch`, which a short job may outrun; return 1 where it ran."""
        del handle
        return int(self._end_launching(launch, LAUNCH_SECONDS))

    def _end_launching(self, launch: Launch, wait_seconds: float) -> bool:
        """Wait for `sky launch`, then end it; return whether it had to be ended."""
        starting = self._launching.pop(launch.token, None)
        if starting is None:
            return False
        try:
            starting.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            starting.terminate()
            starting.wait()
            return True
        return False

    def _has_cluster(self, launch: Launch) -> bool:
        """Return whether SkyPilot has a cluster of the attempt's name, which opens a row then."""
        rows = answer(["sky", "status", "--refresh", _name(launch)]).splitlines()
        return any(row.split()[:1] == [_name(launch)] for row in rows)


def _name(launch: Launch) -> str:
    return f"forge-{launch.token}"
