"""Where jobs run: every launcher starts the same `forge … --json` in a shared run directory.

A launcher knows how to start a command, whether it runs, how to stop it and what it last said.
What the command achieved is read from the run directory alone (events, outcome, exit file), so it
is the same on this machine, under Slurm and under SkyPilot.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Handle = dict[str, Any]  # plain JSON values, stored with the attempt


@dataclass(slots=True, kw_only=True)
class Launch:
    """One attempt at a job.

    token: the attempt's name, which all its processes carry as FORGE_ATTEMPT. arguments: of
    `forge`. directory: the job's own, on a disk that every machine of the launcher sees. gpus: the
    accelerators it may use; None leaves that to the launcher. processes: that train together.
    """

    token: str
    directory: Path
    arguments: list[str] = field(default_factory=list)
    gpus: list[str] | None = None
    processes: int = 1

    @property
    def log(self) -> Path:
        """Return the file of the command's standard error."""
        return self.directory / f"{self.token}.log"

    @property
    def exit_file(self) -> Path:
        """Return the file in which the command leaves its exit code."""
        return self.directory / f"{self.token}.exit"


@dataclass(slots=True, frozen=True)
class Status:
    """Whether an attempt has a process or waits for one, and how it ended where that is known."""

    alive: bool
    exit_code: int | None = None


class Launcher(Protocol):
    """Start, watch and stop attempts. None of the calls waits for a job.

    name: as attempts are stored with. most_jobs: how many run at a time; None leaves that to the
    supervisor, which counts the accelerators of this machine.
    """

    name: str
    most_jobs: int | None

    def submit(self, launch: Launch) -> Handle:
        """Start the command. Raises ForgeError where that is not possible."""

    def find(self, launch: Launch) -> Handle | None:
        """Return the handle of an attempt whose `submit` was cut off, None where none runs."""

    def poll(self, launch: Launch, handle: Handle) -> Status:
        """Return whether the attempt is alive."""

    def cancel(self, launch: Launch, handle: Handle, *, force: bool) -> None:
        """Ask the attempt to save and stop; force: end it and all its processes now."""

    def sweep(self, launch: Launch, handle: Handle) -> int:
        """End what an ended attempt has left running; return the number of processes."""

    def tail(self, launch: Launch, lines: int) -> str:
        """Return the last lines that the attempt, or what was to start it, has said; "" for none."""


def last_lines(path: Path, lines: int = 50, most_bytes: int = 1 << 16) -> str:
    """Return the last lines of a log, "" where it is missing."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - most_bytes, 0))
            text = file.read(most_bytes).decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
