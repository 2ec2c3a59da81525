"""`forge serve`, and `forge keys` for the API keys of a server's state directory."""

import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Json, Verbose, examples
from agent_forge.cli.render import console, print_json, say

if TYPE_CHECKING:
    from agent_forge.server.security.keys import Key

State = Annotated[
    Path, typer.Option("--state", help="The server's state directory.", envvar="FORGE_STATE")
]
STATE = Path("outputs/.server")
NEEDED = ("fastapi", "uvicorn", "websockets", "limits")
# The options of `forge serve`.
Host = Annotated[
    str, typer.Option(help="Address to listen on; others than this machine's need a flag.")
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: a free one.")]
Watch = Annotated[
    list[Path] | None,
    typer.Option(help="Where runs and checkpoints are shown from; may be repeated [outputs]."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=PATH", help="Text or rows that jobs may read; may be repeated."),
]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--import", metavar="NAME=PATH", help="A model that may be imported; may be repeated."
    ),
]
Split = Annotated[
    bool, typer.Option("--split", help="Four processes: control, chat, updates, models.")
]
Mcp = Annotated[
    str,
    typer.Option(
        metavar="ROOMS",
        help="Offer MCP at /mcp: memory, checkpoints, registry, evaluations; several with commas.",
    ),
]
McpRegistry = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Git repository of models for MCP's registry.")
]
AuditHeads = Annotated[
    str, typer.Option(metavar="COMMAND", help="Gets each new head of the audit log on its stdin.")
]
AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Let --host be reached from other machines.")
]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="A further name of this server; may be repeated.")
]
AllowOrigin = Annotated[
    list[str] | None, typer.Option(help="A site whose pages may use it; may be repeated.")
]
RequestsPerMinute = Annotated[
    int, typer.Option(min=1, max=10**9, help="Of each key; more are answered 429.")
]
ModelMemory = Annotated[
    int, typer.Option(min=0, help="MiB that loaded models may hold; 0: half of the machine's.")
]
PrintSchema = Annotated[
    bool, typer.Option("--schema", help="Print the OpenAPI description, and serve nothing.")
]
Launcher = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="YAML that says where jobs run: slurm or skypilot."),
]
Part = Annotated[str, typer.Option(hidden=True, help="One part of a split service.")]
PartOf = Annotated[int, typer.Option(hidden=True, help="The process that a part ends with.")]
ControlPort = Annotated[int, typer.Option(hidden=True)]


def add_to(app: typer.Typer) -> None:
    """Add the subcommands of this file."""
    app.command(
        "serve",
        help="Serve jobs, live updates, models and chat on this machine, until a signal.",
        epilog=examples(
            "forge serve",
            "forge serve --port 9000 --data speeches=texts/speeches --watch outputs",
        ),
    )(serve_command)
    group = typer.Typer(help="API keys of the service.", no_args_is_help=True)
    group.command(
        "create",
        help="Create a key and print it, this once.",
        epilog=examples(
            "forge keys create laptop",
            "forge keys create ci --scope read --scope run --expires-days 90",
        ),
    )(create_command)
    group.command(
        "list",
        help="List keys: id, name, scopes, state; never the key itself.",
        epilog=examples("forge keys list", "forge keys list --json"),
    )(list_command)
    group.command(
        "revoke",
        help="Revoke a key at once, in a running server too.",
        epilog=examples("forge keys revoke 1a2b3c4d", "forge keys revoke 1a2b3c4d --json"),
    )(revoke_command)
    app.add_typer(group, name="keys")


def serve_command(
    host: Host = "127.0.0.1",
    port: Port = 8083,
    state: State = STATE,
    watch: Watch = None,
    data: Data = None,
    imports: Imports = None,
    split: Split = False,
    mcp: Mcp = "",
    mcp_registry: McpRegistry = "",
    audit_heads: AuditHeads = "",
    allow_network: AllowNetwork = False,
    allow_host: AllowHost = None,
    allow_origin: AllowOrigin = None,
    requests_per_minute: RequestsPerMinute = 1200,
    model_memory_mib: ModelMemory = 0,
    print_schema: PrintSchema = False,
    launcher: Launcher = None,
    part: Part = "",
    part_of: PartOf = 0,
    control_port: ControlPort = 8083,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; jobs go on, and the next server finds them."""
    with one_line_errors(verbose):
        require_extra()
        from agent_forge.core.lifetime import die_with_parent
        from agent_forge.server.data_sources import read_sources
        from agent_forge.server.service import PARTS
        from agent_forge.server.serving import ServeSettings, schema, serve
        from agent_forge.server.split import connects, serve_split

        settings = ServeSettings(
            state=state, watch=watch or [Path("outputs")], host=host, port=port,
            control_port=control_port if part else port, parts=(part,) if part else PARTS,
            data=read_sources(data or [], "--data"),
            imports=read_sources(imports or [], "--import"),
            mcp_rooms=comma_separated(mcp), mcp_repository=mcp_registry,
            audit_heads=audit_heads, launcher=launcher,
            hosts=tuple(allow_host or ()), origins=tuple(allow_origin or ()),
            allow_network=allow_network, requests_per_minute=requests_per_minute,
            model_memory_bytes=model_memory_mib << 20,
        )  # fmt: skip
        if print_schema:
            print_json(schema(settings))
        elif split:
            raise typer.Exit(serve_split(settings, as_json=as_json))
        else:
            if part:
                connects(settings)
            if part_of:
                die_with_parent(part_of)
            serve(settings, as_json=as_json)


def comma_separated(text: str) -> tuple[str, ...]:
    """Return the names of a list with commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def require_extra() -> None:
    """Raise ConfigError in one line where the packages of the extra `serve` are missing."""
    from agent_forge.core.errors import ConfigError

    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"forge serve needs {', '.join(missing)}: pip install 'agent-forge[serve]'"
        )


def create_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who or what will use it.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="read, run, models, chat, mcp or admin; may be repeated."),
    ] = None,
    expires_days: Annotated[
        float, typer.Option(min=0, max=36500, help="Days until it expires; 0: never.")
    ] = 0.0,
    state: State = STATE,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Create a key. Without --scope it may do everything but administer."""
    from agent_forge.server.security.keys import SCOPES, KeyRing

    with one_line_errors(verbose):
        scopes = scope or [known for known in SCOPES if known != "admin"]
        key, token = KeyRing(state).create(name, scopes, expires_days)
        if as_json:
            print_json({**_row(key), "key": token})
            return
        typer.echo(token)
        say(console(), f"{key.id}: {', '.join(key.scopes)}; the key is shown this once")


def list_command(state: State = STATE, as_json: Json = False, verbose: Verbose = False) -> None:
    """List the keys, oldest first."""
    from agent_forge.cli.tables import plain_table
    from agent_forge.server.security.keys import KeyRing

    with one_line_errors(verbose):
        rows = [_row(key) for key in KeyRing(state).list()]
        if as_json:
            print_json(rows)
        elif rows:
            console(stderr=False).print(plain_table(rows))
        else:
            say(console(), f"no keys in {state}; make one: forge keys create NAME")


def revoke_command(
    identity: Annotated[str, typer.Argument(metavar="ID", help="The key's id, of `keys list`.")],
    state: State = STATE,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Revoke a key."""
    from agent_forge.server.security.keys import KeyRing

    with one_line_errors(verbose):
        key = KeyRing(state).revoke(identity)
        if as_json:
            print_json(_row(key))
        else:
            say(console(stderr=False), f"revoked {key.id} ({key.name})")


def _row(key: "Key") -> dict[str, object]:
    state = "revoked" if key.revoked else "valid" if key.valid() else "expired"
    return {
        "id": key.id, "name": key.name, "scopes": list(key.scopes), "state": state,
        "created": _day(key.created), "expires": _day(key.expires) if key.expires else "never",
    }  # fmt: skip


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
