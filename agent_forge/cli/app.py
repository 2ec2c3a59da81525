"""Put the subcommands together: one per phase of the catalogue, run-all, and the tools around."""

import shutil
from typing import Any

import typer
from typer.core import TyperGroup

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

COLUMNS = shutil.get_terminal_size().columns
IS_NARROW = COLUMNS < 64  # the panels of rich help would cut the names of options; plain help wraps


class _Group(TyperGroup):
    """A group of commands whose plain help cuts no line that says what a command does."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write every command with its whole help."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help or "") for name, command in named if command])


app = typer.Typer(
    name="forge",
    cls=_Group,
    rich_markup_mode=None if IS_NARROW else "rich",
    help="Turn a base language model into a small, compressed, tool-using agent, in eight phases.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        **({"terminal_width": COLUMNS} if IS_NARROW else {}),
    },
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
for group in app.registered_groups:
    group.cls = _Group
