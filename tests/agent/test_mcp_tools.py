"""Tools of MCP servers: a small server over both transports, and the reference servers of npm."""

import json
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_forge.agent import Call, Tool, Toolbox, ToolContext, kept_tools, load_tools
from agent_forge.core.errors import ConfigError
from tests.npm_packages import SERVERS, installed

SMALL = '''
import sys
from mcp.server.mcpserver import MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("small")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def add(a: int, b: int = 1) -> int:
    """Add two   numbers."""
    return a + b


@server.tool()
def wipe(name: str) -> str:
    """Wipe something."""
    return f"wiped {name}"


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
async def slow() -> str:
    """Never answer."""
    import anyio
    await anyio.sleep_forever()


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def die() -> str:
    """End the server."""
    import os
    os._exit(3)


if sys.argv[1] == "stdio":
    server.run("stdio")
else:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
'''


@pytest.fixture(scope="session")
def small_server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mcp") / "small_server.py"
    path.write_text(SMALL)
    return path


def stdio(path: Path) -> str:
    return f"mcp:{shlex.join([sys.executable, str(path), 'stdio'])}"


@contextmanager
def over_http(path: Path) -> Iterator[str]:
    """Run the small server on a free port; wait until it listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(path), str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline, "the server does not listen"
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.kill()
        process.communicate()


@contextmanager
def tools_of(source: str) -> Iterator[list[Tool]]:
    with ExitStack() as stack:
        yield load_tools([source], stack)


def check_small(tools: list[Tool]) -> None:
    assert [(tool.name, tool.destructive) for tool in tools] == [
        ("add", False), ("wipe", True), ("slow", False), ("die", False),
    ]  # fmt: skip
    assert tools[0].description == "Add two numbers."
    assert tools[0].parameters["properties"] == {
        "a": {"type": "integer"}, "b": {"type": "integer", "default": 1},
    }  # fmt: skip
    box = Toolbox(tools, ToolContext(timeout_seconds=20), allow=["wipe"])
    assert box.run(Call("add", {"a": 40, "b": 2})).text == "42"
    assert "must be a JSON integer" in box.run(Call("add", {"a": "x"})).text
    waiting = box.run(Call("wipe", {"name": "disk"})).confirmation
    assert waiting is not None
    assert box.run(Call("wipe", {"name": "disk"}), waiting.digest).text == "wiped disk"
    hasty = Toolbox(tools, ToolContext(timeout_seconds=0.3))
    assert hasty.run(Call("slow", {})).error
    assert (
        box.run(Call("add", {"a": 1})).text == "2"
    )  # a call that timed out does not end the session


def test_a_server_that_a_command_starts_gives_its_tools(small_server: Path) -> None:
    with tools_of(stdio(small_server)) as tools:
        check_small(tools)
        died = Toolbox(tools, ToolContext(timeout_seconds=20)).run(Call("die", {}))
        assert died.error
        assert died.text.startswith("error: die of ")


def test_a_server_over_http_gives_its_tools_alike(small_server: Path) -> None:
    with over_http(small_server) as url:
        with tools_of(f"mcp:{url}") as tools:
            check_small(tools)
        config = small_server.with_name("servers.json")
        config.write_text(json.dumps({"mcpServers": {
            "off": {"command": "nothing", "disabled": True},
            "small": {"type": "http", "url": url, "headers": {"X-Trace": "1"}},
        }}))  # fmt: skip
        with tools_of(str(config)) as tools:
            assert [tool.source.place for tool in tools] == [url] * 4


def test_a_configured_command_gets_only_the_environment_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGE_SECRET", "hush")
    monkeypatch.setenv("SHOP_KEY", "k1")
    server = tmp_path / "server.py"
    server.write_text(
        "import os\nfrom mcp.server.mcpserver import MCPServer\ns = MCPServer('e')\n"
        "@s.tool()\ndef seen() -> str:\n    return f\"{os.environ.get('KEY')} "
        "{os.environ.get('FORGE_SECRET')} {os.getcwd()}\"\ns.run('stdio')\n"
    )
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"e": {
        "command": sys.executable, "args": [str(server)], "env": {"KEY": "${SHOP_KEY}"},
        "cwd": str(tmp_path),
    }}}))  # fmt: skip
    with tools_of(str(tmp_path / "servers.json")) as tools:
        box = Toolbox(tools, ToolContext(timeout_seconds=20), allow=["seen"], confirm=False)
        assert box.run(Call("seen", {})).text == f"k1 None {tmp_path}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mcp:", "needs a command or a URL"),
        ("mcp:no-such-program-here --x", "No such file"),
        (f"mcp:{sys.executable} -c 'raise SystemExit(\"no disk\")'", "no disk"),
        ("mcp:http://127.0.0.1:9/mcp", "does not answer"),
        ("mcp:a 'b", "cannot be read"),
    ],
)
def test_a_server_that_does_not_answer_is_told_in_one_line(source: str, message: str) -> None:
    with ExitStack() as stack, pytest.raises(ConfigError, match=message) as raised:
        load_tools([source], stack)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ({"a": {"comand": "x"}}, "did you mean 'command'"),
        ({"a": {}}, "needs either a command or a url"),
        ({"a": {"command": "x", "url": "http://y"}}, "needs either a command or a url"),
        ({"a": {"url": "http://127.0.0.1/sse", "type": "sse"}}, "withdrawn"),
        ({"a": {"url": "file:///etc"}}, "http"),
        (["a"], "must map names"),
    ],
)
def test_a_servers_file_that_is_wrong_says_where(
    tmp_path: Path, servers: Any, message: str
) -> None:
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": servers}))
    with pytest.raises(ConfigError, match=message):
        load_tools([str(tmp_path / "servers.json")])


def test_a_manifest_starts_no_server_unasked(small_server: Path) -> None:
    with tools_of(stdio(small_server)) as tools:
        entries = json.loads(json.dumps([tool.entry() for tool in tools]))
    entries[0]["source"]["place"] = "no-such-program-here"
    offered, notes = kept_tools(entries)
    assert [tool.run for tool in offered] == [None] * 4
    assert "no-such-program-here" in notes[0]


@pytest.fixture(scope="session")
def reference_servers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory, "servers", SERVERS) / ".bin"


def run(tools: list[Tool], name: str, **arguments: Any) -> str:
    box = Toolbox(tools, ToolContext(timeout_seconds=60), allow=[name], confirm=False) if any(
        tool.name == name and tool.destructive for tool in tools
    ) else Toolbox(tools, ToolContext(timeout_seconds=60))  # fmt: skip
    result = box.run(Call(name, arguments))
    assert not result.error, result.text
    return result.text


def test_the_reference_filesystem_server_works(reference_servers: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    command = shlex.join([str(reference_servers / "mcp-server-filesystem"), str(tmp_path)])
    with tools_of(f"mcp:{command}") as tools:
        dangerous = {tool.name for tool in tools if tool.destructive}
        assert {"write_file", "edit_file"} <= dangerous
        assert not {"read_text_file", "list_directory"} & dangerous
        assert run(tools, "read_text_file", path=str(tmp_path / "a.txt")) == "hello"
        assert "[FILE] a.txt" in run(tools, "list_directory", path=str(tmp_path))
        denied = Toolbox(tools).run(Call("write_file", {"path": "x", "content": "y"}))
        assert "denied" in denied.text
        run(tools, "write_file", path=str(tmp_path / "b.txt"), content="Ж\n")
        assert (tmp_path / "b.txt").read_text() == "Ж\n"
        outside = Toolbox(tools, ToolContext(timeout_seconds=60)).run(
            Call("read_text_file", {"path": "/etc/passwd"})
        )
        assert outside.error


def test_the_reference_memory_server_works(reference_servers: Path, tmp_path: Path) -> None:
    (tmp_path / "servers.json").write_text(json.dumps({"mcpServers": {"memory": {
        "command": str(reference_servers / "mcp-server-memory"),
        "env": {"MEMORY_FILE_PATH": str(tmp_path / "memory.jsonl")},
    }}}))  # fmt: skip
    with tools_of(str(tmp_path / "servers.json")) as tools:
        entity = {"name": "red box", "entityType": "thing", "observations": ["holds 47"]}
        run(tools, "create_entities", entities=[entity])
        assert "holds 47" in run(tools, "search_nodes", query="red")
        lacking = Toolbox(tools).run(Call("search_nodes", {"query": 3.5, "qery": 1}))
        assert "did you mean 'query'" in lacking.text
    assert "red box" in (tmp_path / "memory.jsonl").read_text()


def test_the_reference_everything_server_works(reference_servers: Path) -> None:
    with tools_of(f"mcp:{reference_servers / 'mcp-server-everything'}") as tools:
        names = {tool.name for tool in tools}
        assert "echo" in names
        assert "hi" in run(tools, "echo", message="hi")
        image = next(name for name in names if "image" in name)
        assert "[image image/png]" in run(tools, image)
