"""Run jobs on this machine, each in a session of its own and below everything else in priority.

A job inherits nothing from the server but a list of harmless variables: no listening socket, no
key. It goes on when the server ends, and the next server finds it by its identity.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from agent_forge.core.errors import StorageError
from agent_forge.core.lifetime import give_way
from agent_forge.core.supervised import ATTEMPT_VARIABLE, EXIT_VARIABLE, read_exit
from agent_forge.server.launchers import Handle, Launch, Status, last_lines, processes
from agent_forge.server.launchers.environment import job_environment
from agent_forge.server.launchers.processes import Identity

FORGE = (sys.executable, "-m", "agent_forge")
ENDED = -1.0  # the start of a process that had ended before it was looked at

# Children belong to the process, not to a launcher: a second launcher in it watches them as well.
_children: dict[Identity, "subprocess.Popen[bytes]"] = {}


class LocalLauncher:
    """Start jobs as processes of this machine.

    command: what stands for `forge`. allowed: further variables that jobs get. gives_way: False
    leaves jobs at the server's own priority.
    """

    name = "local"
    most_jobs: int | None = None

    def __init__(
        self,
        command: Sequence[str] = FORGE,
        *,
        allowed: Sequence[str] = (),
        gives_way: bool = True,
    ) -> None:
        self.command = list(command)
        self.allowed = tuple(allowed)
        self.gives_way = gives_way

    def submit(self, launch: Launch) -> Handle:
        """Start the command in a session of its own. Raises StorageError."""
        environment = {
            **job_environment(os.environ, self.allowed),
            ATTEMPT_VARIABLE: launch.token, EXIT_VARIABLE: str(launch.exit_file),
        }  # fmt: skip
        if launch.gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(launch.gpus)
        try:
            launch.directory.mkdir(parents=True, exist_ok=True)
            with launch.log.open("ab") as log:
                child = subprocess.Popen(
                    [*self.command, *launch.arguments], env=environment, stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=log, start_new_session=True, close_fds=True,
                )  # fmt: skip
        except OSError as error:
            raise StorageError(f"cannot start {self.command[0]}: {error}") from error
        # A command that has ended already has no start time any more, so it is nobody's.
        identity = processes.identity_of(child.pid)
        if identity is not None and self.gives_way:
            give_way(child.pid)
        identity = identity or Identity(child.pid, ENDED, processes.boot_id())
        _children[identity] = child
        return identity.as_json()

    def find(self, launch: Launch) -> Handle | None:
        """Return the handle of the attempt's first process, or of one that has ended meanwhile."""
        carriers = processes.of_attempt(launch.token)
        if carriers:
            return carriers[0].as_json()
        return Identity(0, ENDED, "").as_json() if launch.exit_file.exists() else None

    def poll(self, launch: Launch, handle: Handle) -> Status:
        """Return whether the process runs, and how it ended where this server or a file knows."""
        identity = Identity(**handle)
        child = _children.get(identity)
        if child is None and processes.is_alive(identity):
            return Status(alive=True)
        if child is not None:
            if child.poll() is None:
                return Status(alive=True)
            del _children[identity]
            return Status(alive=False, exit_code=child.returncode)
        return Status(alive=False, exit_code=read_exit(launch.exit_file))

    def cancel(self, launch: Launch, handle: Handle, *, force: bool) -> None:
        """Send SIGTERM to the command, which saves; force: SIGKILL to all its processes."""
        if force:
            self.sweep(launch, handle)
        processes.send(Identity(**handle), signal.SIGKILL if force else signal.SIGTERM)

    def sweep(self, launch: Launch, handle: Handle) -> int:  # noqa: ARG002
        """Kill the processes that carry the attempt's token."""
        return sum(
            processes.send(one, signal.SIGKILL) for one in processes.of_attempt(launch.token)
        )

    def tail(self, launch: Launch, lines: int) -> str:
        """Return the end of the command's standard error."""
        return last_lines(launch.log, lines)
