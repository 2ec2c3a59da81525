"""What launchers of clusters share: a run directory on a shared disk, and patience.

The exit file and the touch of `node.py` say most of what a server wants to know; the scheduler is
asked seldom, because asking is slow and loads it. `submit` writes what the node will run; a request
to stop is a file that the node looks for.
"""

import math
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from agent_forge.core.errors import ConfigError, PhaseError
from agent_forge.core.supervised import read_exit
from agent_forge.server.launchers import Handle, Launch, Status, last_lines, node

ASK_SECONDS = 15.0  # between questions to the scheduler about one attempt
FRESH_SECONDS = 30.0  # after a node's last touch, in which nobody has to ask whether it is alive
SILENT_SECONDS = 120.0  # after it, when a job that the scheduler does not know is not alive
COMMAND_SECONDS = 60.0


class ClusterLauncher(ABC):
    """Base of launchers whose jobs run on other machines.

    command: what stands for `forge` on a node. most_jobs: how many run or wait there at a time.
    allowed: further variables of the node's environment that jobs get.
    """

    name = "cluster"

    def __init__(
        self,
        command: Sequence[str] = ("python", "-m", "agent_forge"),
        *,
        most_jobs: int = 4,
        allowed: Sequence[str] = (),
        ask_seconds: float = ASK_SECONDS,
    ) -> None:
        self.command, self.allowed = list(command), tuple(allowed)
        self.most_jobs: int | None = most_jobs
        self.ask_seconds = ask_seconds
        self._answers: dict[str, tuple[float, bool]] = {}

    def prepare(self, launch: Launch) -> None:
        """Write what the node runs. Raises StorageError."""
        launch.directory.mkdir(parents=True, exist_ok=True)
        node.write_launch(launch, self.command, self.allowed)

    def poll(self, launch: Launch, handle: Handle) -> Status:
        """Return whether the attempt runs or waits: by its exit file, else by the scheduler."""
        code = read_exit(launch.exit_file)
        if code is not None:
            self._answers.pop(launch.token, None)
            return Status(alive=False, exit_code=code)
        asked_at, alive = self._answers.get(launch.token, (-self.ask_seconds, True))
        if time.monotonic() - asked_at >= self.ask_seconds:
            alive = self.is_known(launch, handle)
            self._answers[launch.token] = (time.monotonic(), alive)
        if not alive:
            # The exit file may have been written between the two looks.
            self._answers.pop(launch.token, None)
            return Status(alive=False, exit_code=read_exit(launch.exit_file))
        return Status(alive=True)

    def cancel(self, launch: Launch, handle: Handle, *, force: bool) -> None:
        """Leave the request to stop for the node; force: let the scheduler end the attempt."""
        node.stop_file(launch).touch()
        if force or not node.alive_file(launch).exists():  # it has not begun: nothing to save
            self.end(launch, handle)

    def sweep(self, launch: Launch, handle: Handle) -> int:
        """Return 0: the scheduler ends what its jobs leave."""
        del launch, handle
        return 0

    def tail(self, launch: Launch, lines: int) -> str:
        """Return the end of the command's standard error, which lies on the shared disk."""
        return last_lines(launch.log, lines)

    @abstractmethod
    def check(self) -> None:
        """Raise ConfigError where the cluster's commands are missing on this machine."""

    @abstractmethod
    def submit(self, launch: Launch) -> Handle:
        """Give the attempt to the scheduler. Raises ForgeError where that is not possible."""

    @abstractmethod
    def find(self, launch: Launch) -> Handle | None:
        """Return the handle of an attempt whose `submit` was cut off, None where there is none."""

    @abstractmethod
    def is_known(self, launch: Launch, handle: Handle) -> bool:
        """Return whether the scheduler has the attempt running or waiting."""

    @abstractmethod
    def end(self, launch: Launch, handle: Handle) -> None:
        """Let the scheduler end the attempt now."""


def silence(launch: Launch) -> float:
    """Return the seconds since the node showed that the attempt runs; infinity where it has not."""
    try:
        return time.time() - node.alive_file(launch).stat().st_mtime
    except FileNotFoundError:
        return math.inf


def require_tool(name: str, hint: str) -> None:
    """Raise ConfigError where a command of the cluster is missing."""
    if shutil.which(name) is None:
        raise ConfigError(f"`{name}` is not on the PATH; {hint}")


def answer(command: Sequence[str]) -> str:
    """Return what a command of the cluster prints. Raises PhaseError with its last line."""
    try:
        done = subprocess.run(
            list(command), capture_output=True, encoding="utf-8", errors="replace",
            timeout=COMMAND_SECONDS, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise PhaseError(f"{command[0]} did not answer within {COMMAND_SECONDS:g} s") from None
    if done.returncode:
        last = " ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
        raise PhaseError(f"{' '.join(command[:2])} failed: {last}")
    return done.stdout
