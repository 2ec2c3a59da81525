"""`forge chat`: talk to a checkpoint, with the tools and memories that its manifest enables."""

from pathlib import Path
from typing import Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Verbose, examples


def add_to(app: typer.Typer) -> None:
    """Add the subcommand of this file."""
    app.command(
        "chat",
        help="Chat with an agent in the terminal; give a message or pipe one in for a "
        "single answer.",
        epilog=examples(
            "forge chat outputs/run_all/8-compress",
            "forge chat outputs/run_all/8-compress 'What is 48 plus 77?'",
        ),
    )(chat_command)


def chat_command(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint directory.")],
    message: Annotated[
        str | None, typer.Argument(metavar="[MESSAGE]", help="Answer this and leave.")
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", help="SQLite file of the agent's memories.")
    ] = ":memory:",
    documents: Annotated[
        list[str] | None,
        typer.Option("--documents", "-d", help="Text for search and retrieval (as in data.text)."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")] = "auto",
    engine: Annotated[
        str,
        typer.Option(
            "--engine", help="auto: packed codes on the CPU where possible; packed; torch."
        ),
    ] = "auto",
    encoding: Annotated[
        str, typer.Option("--encoding", help="Encoding of the documents.")
    ] = "utf-8",
    verbose: Verbose = False,
) -> None:
    """Chat with an agent."""
    with one_line_errors(verbose):
        from agent_forge.agent.chat import chat
        from agent_forge.config.limits import Encoding
        from agent_forge.core.device import pick_device
        from agent_forge.core.errors import ConfigError

        if Encoding().wrong(encoding):
            raise ConfigError(f"--encoding must be {Encoding()}, got '{encoding}'")
        chat(
            path, once=message, memory=memory, documents=documents or (),
            device=str(pick_device(device)), engine=engine, encoding=encoding,
        )  # fmt: skip
