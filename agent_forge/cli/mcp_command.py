"""`forge mcp`: offer memories, checkpoints, a git registry and evaluations to MCP clients."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from agent_forge.cli.errors import one_line_errors
from agent_forge.cli.phase_commands import Verbose, examples

ALL = "memory,checkpoints,evaluations"


def add_to(app: typer.Typer) -> None:
    """Add the subcommand of this file."""
    app.command(
        "mcp",
        help="Offer memories, checkpoints, a git registry of models and evaluations to clients of "
        "the Model Context Protocol, over stdio or HTTP.",
        epilog=examples(
            "forge mcp --models outputs --memory state/memory.db",
            "forge mcp --http 8090 --offer registry,checkpoints --registry git@host:models.git",
        ),
    )(mcp_command)


def mcp_command(
    offer: Annotated[
        str,
        typer.Option(
            "--offer", help="memory, checkpoints, registry, evaluations; several with commas."
        ),
    ] = ALL,
    models: Annotated[
        Path, typer.Option("--models", help="The directory below which checkpoints lie.")
    ] = Path("outputs"),
    memory: Annotated[
        str, typer.Option("--memory", help="SQLite file of the memories; empty: the user's own.")
    ] = "",
    registry: Annotated[
        str, typer.Option("--registry", help="Address or directory of a git repository of models.")
    ] = "",
    http: Annotated[
        str, typer.Option("--http", help="Serve HTTP on PORT or HOST:PORT in place of stdio.")
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="The HTTP token (FORGE_MCP_TOKEN goes before it)."),
    ] = None,
    allow_network: Annotated[
        bool, typer.Option("--allow-network", help="Let --http be reached from other machines.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Offer rooms to MCP clients."""
    with one_line_errors(verbose):
        from agent_forge.server.mcp.offer import Offer

        rooms = list(dict.fromkeys(name.strip() for name in offer.split(",") if name.strip()))
        if registry and offer == ALL:
            rooms.append("registry")
        state = _state()
        described = Offer(
            rooms=rooms, models=[models], memory=memory or _own_memory(), repository=registry,
            state=state,
        )  # fmt: skip
        if http:
            _serve_http(described, http, token_file or state / "token", allow_network=allow_network)
            return
        from agent_forge.server.mcp.offer import make_server

        make_server(described).run("stdio")


def _own_memory() -> str:
    from agent_forge.agent.memory import user_file

    return str(user_file(os.environ.get("USER") or "default"))


def _state() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "agent-forge" / "mcp"


def _serve_http(described: object, address: str, token_file: Path, *, allow_network: bool) -> None:
    """Serve until SIGINT or SIGTERM; say where, and where the token is."""
    try:
        import uvicorn
    except ImportError:
        from agent_forge.core.errors import ConfigError

        raise ConfigError(
            "forge mcp --http needs uvicorn; pip install 'agent-forge[serve]'"
        ) from None
    from agent_forge.server.listening import bound, check_host, is_loopback
    from agent_forge.server.mcp.http import PATH, application, local_hosts, one_token, token_of
    from agent_forge.server.mcp.offer import Offer

    assert isinstance(described, Offer)
    host, port = read_address(address)
    if not allow_network:
        check_host(host, "--http", "and keep the token to yourself")
    listening = bound(host, port, "--http")
    token, is_new = token_of(token_file)
    bracketed = f"[{host}]" if ":" in host else host
    hosts = [*(local_hosts() if is_loopback(host) else ()), bracketed, f"{bracketed}:*"]
    offered = application(described, one_token(token), hosts=hosts)
    shown = f"http://{bracketed}:{listening.getsockname()[1]}{PATH}"
    print(f"forge: MCP at {shown}; send the token as a bearer", file=sys.stderr)
    print(f"forge: the token {'was written to' if is_new else 'is in'} {token_file}"
          if not os.environ.get("FORGE_MCP_TOKEN") else "forge: the token is FORGE_MCP_TOKEN",
          file=sys.stderr, flush=True)  # fmt: skip
    # The application's own lifespan runs its sessions.
    uvicorn.Server(uvicorn.Config(offered.app, log_level="warning")).run(sockets=[listening])


def read_address(text: str) -> tuple[str, int]:
    """Return host and port of PORT or HOST:PORT. Raises ConfigError."""
    from agent_forge.core.errors import ConfigError

    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"--http is PORT or HOST:PORT, got '{text}'; try --http 8090")
    return host.strip("[]") or "127.0.0.1", int(port)
