"""The `forge` command. Each file here holds some of its subcommands; none imports torch before a subcommand needs it."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from agent_forge.cli.app import app

    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
