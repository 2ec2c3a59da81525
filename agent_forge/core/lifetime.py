"""Tie the life of a worker process to the life of the process that started it."""

import ctypes
import os
import signal
import sys

from agent_forge.core.errors import Interrupted


def die_with_parent(parent_pid: int) -> None:
    """Ask Linux to kill this process when its parent dies, so that no orphan goes on; end when it
    is dead already.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(Interrupted.exit_code)
