"""`forge serve` whose jobs are stubs, as a process: real sockets, real signals, no training.

With --give-way as its first argument, jobs have the lowest priority, as in a real server; the tests
do without, because on a busy machine they would wait for ever.
"""

import sys

from agent_forge.server import serving
from agent_forge.server.launchers import local
from agent_forge.server.settings import JobSettings
from tests.server.house import FORGE


def main() -> None:
    """Run the command line of `forge serve` with the arguments of this process."""
    if sys.argv[1:2] == ["--give-way"]:
        del sys.argv[1]
    else:
        local.give_way = lambda _pid: None
    serving.LocalLauncher = lambda: local.LocalLauncher([sys.executable, str(FORGE)])
    serving.JobSettings = lambda **values: JobSettings(
        **values, gpus=[], poll_seconds=0.05, check_seconds=0.2
    )
    from agent_forge.cli import main as forge

    sys.argv = ["forge", "serve", *sys.argv[1:]]
    forge()


if __name__ == "__main__":
    main()
