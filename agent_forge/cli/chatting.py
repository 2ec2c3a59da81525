"""`forge chat`: talk to a checkpoint, with the tools and memories that its manifest enables."""

from pathlib import Path
from typing import Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Verbose, examples

CheckpointDirectory = Annotated[Path, typer.Argument(metavar="DIR", help="A checkpoint directory.")]
Message = Annotated[str | None, typer.Argument(metavar="[MESSAGE]", help="Answer this and leave.")]
MemoryFile = Annotated[str, typer.Option("--memory", help="SQLite file of the agent's memories.")]
User = Annotated[str, typer.Option("--user", "-u", help="Keep this user's memories between chats.")]
Documents = Annotated[
    list[str] | None,
    typer.Option(
        "--documents",
        "-d",
        help="An index of `forge index`, or text (as in data.text), for search and retrieval.",
    ),
]
SearchEndpoint = Annotated[
    str,
    typer.Option(
        "--search-endpoint",
        envvar="FORGE_SEARCH_ENDPOINT",
        help="A service that `search` asks instead of the index.",
    ),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, ...")]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", help="auto: the packed engine on the CPU where possible; packed; torch."
    ),
]
DocumentEncoding = Annotated[str, typer.Option("--encoding", help="Encoding of the documents.")]
Tools = Annotated[
    list[str] | None,
    typer.Option(
        "--tools",
        "-t",
        help="What it may call: names, .py, .json or .yaml files, MCP servers; "
        "default: the checkpoint's own.",
    ),
]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="A destructive tool that may run, when you confirm."),
]
Once = Annotated[bool, typer.Option("--once", help="Leave after one answer, on a terminal too.")]
EventsAsJson = Annotated[
    bool, typer.Option("--json", help="Print each event (text, call, result, ...) as JSON.")
]
ShowThoughts = Annotated[
    bool,
    typer.Option("--show-thoughts", help="Show what the model thinks (in a chat: /thoughts)."),
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", min=0.0, max=100.0, help="0 always takes the likeliest."),
]
MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", min=1, help="Tokens of one message.")
]


def add_to(app: typer.Typer) -> None:
    """Add the subcommand of this file."""
    app.command(
        "chat",
        help="Chat with an agent in the terminal; give a message or pipe one in for a "
        "single answer.",
        epilog=examples(
            "forge chat outputs/run_all/8-compress",
            "forge chat outputs/run_all/8-compress 'What is 48 plus 77?'",
            "forge chat outputs/run_all/8-compress --json 'What is 48 plus 77?'",
            "forge chat outputs/run_all/8-compress --user ada --documents outputs/index.db",
        ),
    )(chat_command)


def chat_command(
    path: CheckpointDirectory,
    message: Message = None,
    memory: MemoryFile = "",
    user: User = "",
    documents: Documents = None,
    search_endpoint: SearchEndpoint = "",
    device: Device = "auto",
    engine: Engine = "auto",
    encoding: DocumentEncoding = "utf-8",
    tools: Tools = None,
    allow: Allow = None,
    once: Once = False,
    as_json: EventsAsJson = False,
    show_thoughts: ShowThoughts = False,
    temperature: Temperature = None,
    max_new_tokens: MaxNewTokens = None,
    verbose: Verbose = False,
) -> None:
    """Chat with an agent."""
    with one_line_errors(verbose):
        from agent_forge.agent.chat import Talk, chat
        from agent_forge.agent.loop import Opening
        from agent_forge.config.limits import Device as DeviceName
        from agent_forge.config.limits import Encoding
        from agent_forge.core.errors import ConfigError

        if Encoding().wrong(encoding):
            raise ConfigError(f"--encoding must be {Encoding()}, got '{encoding}'")
        if DeviceName().wrong(device):
            raise ConfigError(f"--device must be {DeviceName()}, got '{device}'")
        changes = {
            "temperature": temperature, "max_new_tokens": max_new_tokens, "allow": allow,
        }  # fmt: skip
        opening = Opening(
            memory=memory_file(memory, user),
            documents=documents or (),
            encoding=encoding,
            search_endpoint=search_endpoint,
            device=device,
            engine=engine,
            settings={name: value for name, value in changes.items() if value is not None},
        )
        talk = Talk(message=message, once=once, as_json=as_json, show_thoughts=show_thoughts)
        chat(path, talk, opening, tools or ())


def memory_file(memory: str, user: str) -> str:
    """Return the file of the memories that two options name; ":memory:" where neither does.

    Raises ConfigError where both do, or where the user's name could be a path.
    """
    from agent_forge.agent.memory import user_file
    from agent_forge.core.errors import ConfigError

    if memory and user:
        raise ConfigError("--memory names a file and --user another; give one of them")
    return str(user_file(user)) if user else memory or ":memory:"
