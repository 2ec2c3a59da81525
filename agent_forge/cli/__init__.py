"""The `forge` command.

Each file here holds some of its subcommands; none imports torch before a subcommand needs it.
"""

import os
import signal
import sys
from types import FrameType

from agent_forge.cli import streams
from agent_forge.core.supervised import claim_exit_file, leave_exit


def main() -> None:
    """Run the command line and exit with its code."""
    streams.use_utf8_paths()
    exit_file = claim_exit_file()
    streams.prepare()
    code = 1
    try:
        code = _run()
    except OSError:
        if not streams.failed():  # any other OSError is a defect, and its traceback is needed
            raise
    finally:
        code = streams.finish(code)
        leave_exit(exit_file, code)
    sys.exit(code)


def _run() -> int:
    """Run the app; return its exit code."""
    from agent_forge.cli.app import app
    from agent_forge.core.errors import Interrupted, StorageError

    signal.signal(signal.SIGTERM, _stop)
    try:
        os.getcwd()
    except FileNotFoundError:
        print("forge: the current directory is gone; change to another one", file=sys.stderr)
        return StorageError.exit_code
    try:
        app()
    except KeyboardInterrupt:
        return 130
    except Interrupted as stopped:
        print(f"forge: {stopped}", file=sys.stderr)
        return stopped.exit_code
    except SystemExit as leave:
        if leave.code is None or isinstance(leave.code, int):
            return leave.code or 0
        raise
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave in order on SIGTERM while no phase runs; a running phase handles it itself."""
    from agent_forge.core.errors import Interrupted

    del frame
    raise Interrupted(f"stopped by {signal.Signals(number).name}; the same command goes on")
