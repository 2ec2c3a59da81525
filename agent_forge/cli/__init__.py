"""The `forge` command. Each file here holds some of its subcommands; none imports torch before a subcommand needs it."""

import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line and exit with its code."""
    from agent_forge.cli.app import app
    from agent_forge.core.errors import Interrupted

    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except Interrupted as stopped:
        print(f"forge: {stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave in order on SIGTERM, wherever no phase is at work to be told of it."""
    from agent_forge.core.errors import Interrupted

    del frame
    raise Interrupted(f"stopped by {signal.Signals(number).name}; the same command goes on")
