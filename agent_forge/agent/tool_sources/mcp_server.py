"""Tools of MCP servers: started by a command (stdio), or reached by URL (streamable HTTP).

The session runs on the event loop of a thread of its own, so that tools are plain functions. A
server's own hints decide what counts as destructive, and where it gives none the protocol's default
holds: what does not call itself read-only may destroy. A server started by a command gets a small
environment (PATH, HOME and the like), and what the configuration adds. Source: the Model Context
Protocol, 2026-07-28, by the `mcp` package.
"""

import atexit
import hashlib
import json
import shlex
import tempfile
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_forge.agent.tool import Tool, ToolContext, ToolError, ToolSource
from agent_forge.agent.tool_sources.http import check_url, filled
from agent_forge.agent.tool_sources.schemas import plain_schema
from agent_forge.core.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

START_SECONDS = 60.0  # npx and uvx fetch a server before they start it
SERVER_KEYS = (
    "command", "args", "env", "cwd", "url", "serverUrl", "headers", "type", "transport", "disabled",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is reached: a command with its arguments, or a URL."""

    place: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, place: str) -> "Server":
        """Return the server of `mcp:PLACE`. Raises ConfigError."""
        if place.startswith(("http://", "https://")):
            check_url(place, "mcp:")
            return cls(place)
        try:
            command = tuple(shlex.split(place))
        except ValueError as error:
            raise ConfigError(f"mcp:{place}: the command cannot be read: {error}") from None
        if not command:
            raise ConfigError(
                "mcp: needs a command or a URL, for instance mcp:npx -y @scope/server"
            )
        return cls(place, command)

    @classmethod
    def configured(cls, name: str, entry: Any, where: str) -> "Server":
        """Return one server of an `mcpServers` file. Raises ConfigError."""
        if not isinstance(entry, Mapping):
            raise ConfigError(f"{where}: mcpServers.{name} must be an object, got {entry!r:.60}")
        for key in entry:
            if key not in SERVER_KEYS:
                hint = did_you_mean(key, SERVER_KEYS)
                raise ConfigError(f"{where}: mcpServers.{name}.{key} is not known{hint}")
        url = entry.get("url") or entry.get("serverUrl")
        if bool(url) == bool(entry.get("command")):
            raise ConfigError(f"{where}: mcpServers.{name} needs either a command or a url")
        if entry.get("type", entry.get("transport")) == "sse":
            raise ConfigError(
                f"{where}: mcpServers.{name} uses sse, which MCP has withdrawn; use its "
                "streamable HTTP address"
            )
        if url:
            check_url(url, f"{where}: mcpServers.{name}")
            return cls(str(url), headers=entry.get("headers") or {})
        command = (str(entry["command"]), *map(str, entry.get("args", ())))
        folder = entry.get("cwd")
        return cls(shlex.join(command), command, entry.get("env") or {}, folder)


def server_tools(place: str, stack: ExitStack | None) -> list[Tool]:
    """Return the tools of `mcp:PLACE`, after starting or reaching the server."""
    return connected_tools(Server.named(place), stack)


def configured_tools(
    document: Mapping[str, Any], path: Path, stack: ExitStack | None
) -> list[Tool]:
    """Return the tools of every server in a file with `mcpServers`."""
    servers = document["mcpServers"]
    if not isinstance(servers, Mapping):
        raise ConfigError(f"{path}: mcpServers must map names to servers")
    return [
        tool
        for name, entry in servers.items()
        if not (isinstance(entry, Mapping) and entry.get("disabled"))
        for tool in connected_tools(Server.configured(name, entry, str(path)), stack)
    ]


def connected_tools(server: Server, stack: ExitStack | None) -> list[Tool]:
    """Return the tools that a server lists. Raises ConfigError where it cannot be reached."""
    connection = Connection(server)
    if stack is None:
        atexit.register(connection.close)
    else:
        stack.callback(connection.close)
    listed = connection.tools()
    shown = [tool.model_dump(mode="json", exclude_none=True) for tool in listed]
    digest = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()
    source = ToolSource("mcp", server.place, digest)
    return [_tool(connection, tool, source) for tool in listed]


def _tool(connection: "Connection", listed: Any, source: ToolSource) -> Tool:
    hints = listed.annotations
    harmless = hints is not None and (
        hints.read_only_hint is True or hints.destructive_hint is False
    )
    schema = listed.input_schema

    def run(arguments: dict[str, Any], context: ToolContext) -> str:
        return connection.call(listed.name, arguments, context.timeout_seconds)

    return Tool(
        listed.name,
        " ".join((listed.description or listed.title or "").split()),
        plain_schema(schema, schema, f"{source}: {listed.name}"),
        run,
        destructive=not harmless,
        source=source,
    )


class Connection:
    """One open session with a server. Raises ConfigError where it cannot be opened."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._stack = ExitStack()
        try:
            session = _portal().wrap_async_context_manager(_session(server))
            self._client = self._stack.enter_context(session)
        except BaseException as error:
            self._stack.close()
            if not isinstance(error, Exception):
                raise
            raise ConfigError(f"mcp:{server.place} does not answer: {_reason(error)}") from error

    def tools(self) -> list[Any]:
        """Return everything that the server lists, page by page."""
        tools: list[Any] = []
        cursor: str | None = None
        while True:
            page = _portal().call(partial(self._client.list_tools, cursor=cursor))
            tools += page.tools
            cursor = page.next_cursor
            if not cursor:
                return tools

    def call(self, name: str, arguments: dict[str, Any], timeout_seconds: float) -> str:
        """Return what a tool answers. Raises ToolError for its errors and a server that is gone."""
        try:
            result = _portal().call(
                lambda: self._client.call_tool(
                    name, arguments, read_timeout_seconds=timeout_seconds
                )
            )
        except Exception as error:  # whatever a server or its transport does is shown to the model
            raise ToolError(f"{name} of {self.server.place}: {_reason(error)}") from error
        text = _text(result)
        if result.is_error:
            raise ToolError(text or f"{name} failed without a word")
        return text

    def close(self) -> None:
        """End the session; a server that was started stops."""
        self._stack.close()


@asynccontextmanager
async def _session(server: Server) -> AsyncIterator[Any]:
    """Open a session, and close what it needs when it ends."""
    import httpx2
    from mcp import Client, StdioServerParameters, stdio_client
    from mcp.client.streamable_http import streamable_http_client

    if not server.command:
        headers = {name: filled(str(value)) for name, value in server.headers.items()}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=START_SECONDS) as http,
            Client(
                streamable_http_client(server.place, http_client=http),
                read_timeout_seconds=START_SECONDS,
            ) as client,
        ):
            yield client
        return
    parameters = StdioServerParameters(
        command=server.command[0],
        args=list(server.command[1:]),
        env={name: filled(str(value)) for name, value in server.environment.items()},
        cwd=server.folder,
    )
    with tempfile.TemporaryFile("w+") as complaints:
        try:
            async with Client(
                stdio_client(parameters, errlog=complaints), read_timeout_seconds=START_SECONDS
            ) as client:
                yield client
        except Exception as error:
            complaints.seek(0)
            last = complaints.read().strip().splitlines()[-1:]
            raise ConnectionError(
                f"{_reason(error)}{': ' if last else ''}{''.join(last)}"
            ) from error


def _reason(error: BaseException) -> str:
    """Return the first plain error in a group of errors, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split())[:300] or type(error).__name__


def _text(result: Any) -> str:
    """Return what a result says: its texts, and in brackets what a text model cannot see."""
    parts = []
    for block in result.content:
        if block.type == "text":
            parts.append(block.text)
        elif block.type == "resource" and getattr(block.resource, "text", None) is not None:
            parts.append(block.resource.text)
        else:
            place = getattr(block, "uri", getattr(getattr(block, "resource", None), "uri", ""))
            kind = getattr(block, "mime_type", None) or ""
            parts.append(f"[{' '.join(str(part) for part in (block.type, kind, place) if part)}]")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return "\n".join(parts)


@cache
def _portal() -> "BlockingPortal":
    """Return the door to one event loop for all servers, on a thread that ends with the process.

    anyio's own `start_blocking_portal` takes a thread that the interpreter waits for at its end.
    """
    try:
        import anyio
        from anyio.from_thread import BlockingPortal
    except ImportError:
        raise ConfigError(
            "tools of MCP servers need mcp; pip install 'agent-forge[agent]'"
        ) from None
    ready: Future[BlockingPortal] = Future()

    async def main() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    threading.Thread(target=anyio.run, args=(main,), daemon=True, name="mcp").start()
    return ready.result()
