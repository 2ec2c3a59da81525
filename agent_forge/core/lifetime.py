"""How a worker lives beside others: it ends with the process that started it, and may give way."""

import contextlib
import ctypes
import errno
import logging
import os
import signal
import sys
import time
from pathlib import Path

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


# Niceness 19 has 1/68 of the weight that 0 has; an idle machine is used in full all the same.
BACKGROUND_NICE = 19
# The kernel takes ten changes of groups per second from all processes without privileges together.
GROUP_TRIES, GROUP_WAIT_SECONDS = 20, 0.11


def give_way(pid: int = 0) -> None:
    """Let other processes go before process `pid` (0: this one) and what it starts from now on.

    Niceness alone weighs the processes of one session: Linux puts each session into a scheduling
    group ("autogroup") of equal weight, so the group is lowered as well. A child that opens a
    session of its own gets a new group, and calls this again. Where there are no such groups,
    niceness does it.
    """
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        os.setpriority(os.PRIO_PROCESS, pid, BACKGROUND_NICE)
    group = Path(f"/proc/{pid or 'self'}/autogroup")
    for _ in range(GROUP_TRIES):
        try:
            group.write_text(str(BACKGROUND_NICE), encoding="ascii")
            return
        except (FileNotFoundError, ProcessLookupError):
            return  # another system, or a process that has ended
        except OSError as error:
            problem = error
            if error.errno != errno.EAGAIN:
                break
        time.sleep(GROUP_WAIT_SECONDS)
    logging.getLogger("agent_forge").warning(
        "cannot lower the priority of this session's group (%s): %s; "
        "it runs at its niceness alone", group, problem.strerror,
    )  # fmt: skip
