"""Run jobs on this machine, each in a session of its own and below everything else in priority.

A job inherits nothing from the server but a list of harmless variables: no listening socket, no
key. It goes on when the server ends, and the next server finds it by its identity.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent_forge.core.errors import StorageError
from agent_forge.core.exits import EXIT_VARIABLE, read_exit
from agent_forge.core.lifetime import give_way
from agent_forge.pipeline.run_phase import ATTEMPT_VARIABLE
from agent_forge.server.launchers import Handle, Launch, Status, last_lines, processes
from agent_forge.server.launchers.processes import Identity

FORGE = (sys.executable, "-m", "agent_forge")
# What a job may know of the server's environment.
PASSED = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP",
    "PYTHONPATH", "PYTHONUTF8", "VIRTUAL_ENV", "CONDA_PREFIX", "LD_LIBRARY_PATH", "CC", "CXX",
    "XDG_CACHE_HOME", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
    "no_proxy", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
PASSED_PREFIXES = (
    "LC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "TORCH",
    "PYTORCH_", "TRITON_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "COVERAGE_",
)  # fmt: skip
ENDED = -1.0  # the start of a process that had ended before it was looked at
SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "COOKIE")


def job_environment(source: Mapping[str, str], allowed: Sequence[str] = ()) -> dict[str, str]:
    """Return the variables of `source` that a job gets.

    allowed: names that are passed on as well, whatever they hold.
    """
    return {name: value for name, value in source.items() if name in allowed or _is_harmless(name)}


def _is_harmless(name: str) -> bool:
    is_listed = name in PASSED or name.startswith(PASSED_PREFIXES)
    return is_listed and not any(word in name.upper() for word in SECRET)


class LocalLauncher:
    """Start jobs as processes of this machine.

    command: what stands for `forge`. allowed: further variables that jobs get.
    """

    name = "local"

    def __init__(self, command: Sequence[str] = FORGE, *, allowed: Sequence[str] = ()) -> None:
        self.command = list(command)
        self.allowed = tuple(allowed)
        self._children: dict[Identity, subprocess.Popen[bytes]] = {}

    def submit(self, launch: Launch) -> Handle:
        """Start the command in a session of its own. Raises StorageError."""
        environment = {
            **job_environment(os.environ, self.allowed), **launch.environment,
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
        if identity is not None:
            give_way(child.pid)
        identity = identity or Identity(child.pid, ENDED, processes.boot_id())
        self._children[identity] = child
        return _handle(identity, launch)

    def find(self, launch: Launch) -> Handle | None:
        """Return the handle of the attempt's first process."""
        carriers = processes.of_attempt(launch.token)
        if carriers:
            return _handle(carriers[0], launch)
        if launch.exit_file.exists():  # it has run to its end meanwhile
            return _handle(Identity(0, ENDED, ""), launch)
        return None

    def poll(self, handle: Handle) -> Status:
        """Return whether the process runs, and how it ended where this server or a file knows."""
        identity = _identity(handle)
        child = self._children.get(identity)
        if child is not None:
            code = child.poll()
            if code is None:
                return Status(alive=True)
            del self._children[identity]
            return Status(alive=False, exit_code=code)
        if processes.is_alive(identity):
            return Status(alive=True)
        return Status(alive=False, exit_code=read_exit(Path(handle["exit_file"])))

    def cancel(self, handle: Handle, *, force: bool) -> None:
        """Send SIGTERM; force: SIGKILL."""
        processes.send(_identity(handle), signal.SIGKILL if force else signal.SIGTERM)

    def sweep(self, launch: Launch) -> int:
        """Kill the processes that carry the attempt's token."""
        return sum(
            processes.send(one, signal.SIGKILL) for one in processes.of_attempt(launch.token)
        )

    def tail(self, launch: Launch, lines: int = 50) -> str:
        """Return the end of the attempt's log."""
        return last_lines(launch.log, lines)


def _handle(identity: Identity, launch: Launch) -> Handle:
    return {**identity.as_json(), "exit_file": str(launch.exit_file)}


def _identity(handle: Handle) -> Identity:
    return Identity(handle["pid"], handle["start"], handle["boot"])
