"""Which process is which: a pid alone is not a name, because the kernel gives it away again.

A process is named by its pid, its start time and the boot that it belongs to. The processes of an
attempt are found by the token in their environment, which children inherit.
"""

import contextlib
import os
import signal
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from agent_forge.core.supervised import ATTEMPT_VARIABLE

DEAD_STATES = ("Z", "X")


@dataclass(slots=True, frozen=True)
class Identity:
    """A process, for good: pid, start (clock ticks after the boot, or seconds), and boot."""

    pid: int
    start: float
    boot: str

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


@cache
def boot_id() -> str:
    """Return a name of this boot of the machine."""
    file = Path("/proc/sys/kernel/random/boot_id")
    if file.exists():
        return file.read_text(encoding="ascii").strip()
    return f"{psutil.boot_time():.0f}"


def identity_of(pid: int) -> Identity | None:
    """Return the identity of a process that runs now; None where it has ended."""
    start = _start(pid)
    return None if start is None else Identity(pid, start, boot_id())


def is_alive(identity: Identity) -> bool:
    """Return whether exactly this process still runs; a zombie does not."""
    return identity.boot == boot_id() and _start(identity.pid) == identity.start


def send(identity: Identity, number: int) -> bool:
    """Send a signal to exactly this process; return whether it was there."""
    try:
        # Between the check and the signal a pid may be given away; this descriptor is not.
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return False
    except (AttributeError, OSError):
        descriptor = None
    try:
        if not is_alive(identity):
            return False
        with contextlib.suppress(ProcessLookupError):
            if descriptor is None:
                os.kill(identity.pid, number)
            else:
                signal.pidfd_send_signal(descriptor, number)
            return True
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)


def of_attempt(token: str) -> list[Identity]:
    """Return the processes that carry an attempt's token, the first one that began first."""
    carriers = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(ATTEMPT_VARIABLE) == token:
                carriers.append(identity_of(process.pid))
    return sorted((one for one in carriers if one is not None), key=lambda one: one.start)


def _start(pid: int) -> float | None:
    """Return when a process began; None for one that has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _start_elsewhere(pid)
    # The command's name stands in brackets and may hold anything.
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0].decode() in DEAD_STATES else float(fields[19])


def _start_elsewhere(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
