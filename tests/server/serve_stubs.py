"""`forge serve` whose jobs are stubs, as a process: real sockets, real signals, no training."""

import sys

from agent_forge.server import serving
from agent_forge.server.launchers import local
from agent_forge.server.settings import JobSettings
from tests.server.house import FORGE


def main() -> None:
    """Run the command line of `forge serve` with the arguments of this process."""
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
