"""Run one attempt on the machine that a cluster has chosen for it.

    python -m agent_forge.server.launchers.node DIRECTORY TOKEN

Reads DIRECTORY/TOKEN.launch, which the server wrote, and runs the command in it with the variables
that the local launcher would pass on. While it runs, TOKEN.alive is touched, so the
server sees it live on the shared disk alone; TOKEN.stop asks it to save and stop. Signals of the
cluster are not passed on twice: a second SIGTERM would end a phase without saving.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from agent_forge.checkpoint import atomic
from agent_forge.core.lifetime import die_with_parent
from agent_forge.core.supervised import ATTEMPT_VARIABLE, EXIT_VARIABLE, leave_exit
from agent_forge.server.launchers import Launch
from agent_forge.server.launchers.environment import job_environment

POLL_SECONDS = 0.5
ALIVE_SECONDS = 5.0
TIME_IS_UP = signal.SIGUSR2  # what submitit lets Slurm send before the time limit


def write_launch(launch: Launch, command: Sequence[str], allowed: Sequence[str] = ()) -> None:
    """Write what `run` needs. Raises StorageError."""
    content = {"command": [*command, *launch.arguments], "allowed": list(allowed)}
    atomic.write_json(launch.directory / f"{launch.token}.launch", content)


def run(directory: str, token: str) -> int:
    """Run the attempt to its end; return its exit code, which is left in its exit file too."""
    launch = Launch(token=token, directory=Path(directory))
    content = json.loads((launch.directory / f"{token}.launch").read_text(encoding="utf-8"))
    environment = {
        **job_environment(os.environ, content["allowed"]),
        ATTEMPT_VARIABLE: token, EXIT_VARIABLE: str(launch.exit_file),
    }  # fmt: skip
    with launch.log.open("ab") as log:
        child = subprocess.Popen(
            content["command"], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
            preexec_fn=partial(_before_command, os.getpid()),
        )  # fmt: skip
    stop_requested: list[int] = []
    for number in (signal.SIGTERM, TIME_IS_UP):
        signal.signal(number, lambda number, _: stop_requested.append(number))
    code = _watch(child, launch, stop_requested)
    if not launch.exit_file.exists():  # it was killed before it could leave one
        leave_exit(launch.exit_file, code)
    return code


def _before_command(parent_pid: int) -> None:
    """Prepare the command's process: it ends with this one, and leaves the cluster's warning to it.

    Slurm sends the warning to all processes of a job, and whoever does not expect it dies of it.
    """
    signal.signal(TIME_IS_UP, signal.SIG_IGN)
    die_with_parent(parent_pid)


def _watch(child: "subprocess.Popen[bytes]", launch: Launch, stop_requested: list[int]) -> int:
    """Wait for the child; show that it lives, and pass the first request to stop on."""
    stop, alive = stop_file(launch), alive_file(launch)
    was_stopped, touched = False, 0.0
    while child.poll() is None:
        if not was_stopped and (stop_requested or stop.exists()):
            was_stopped = True
            child.terminate()
        if time.monotonic() - touched > ALIVE_SECONDS:
            touched = time.monotonic()
            with contextlib.suppress(OSError):  # a full disk is the command's own trouble
                alive.touch()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
    return child.returncode


def stop_file(launch: Launch) -> Path:
    """Return the file whose presence asks an attempt to stop."""
    return launch.directory / f"{launch.token}.stop"


def alive_file(launch: Launch) -> Path:
    """Return the file that is touched while an attempt runs."""
    return launch.directory / f"{launch.token}.alive"


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:3]))
