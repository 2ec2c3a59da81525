"""Put the subcommands together: one per phase of the catalogue, run-all, and the tools around."""

import typer

from agent_forge import __version__
from agent_forge.cli import (
    auditing,
    chatting,
    data_commands,
    doctor,
    encrypting,
    exporting,
    indexing,
    inspection,
    mcp_command,
    merging,
    phase_commands,
    scoring,
    serving,
    tool_commands,
)

app = typer.Typer(
    name="forge",
    help="Turn a base language model into a small, compressed, tool-using agent, in eight phases.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"forge {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    del version  # the callback has already printed the version and left


phase_commands.add_to(app)
inspection.add_to(app)
merging.add_to(app)
scoring.add_to(app)
chatting.add_to(app)
tool_commands.add_to(app)
mcp_command.add_to(app)
data_commands.add_to(app)
exporting.add_to(app)
encrypting.add_to(app)
auditing.add_to(app)
indexing.add_to(app)
serving.add_to(app)
doctor.add_to(app)
