"""`forge mcp`: its rooms, its walls, and clients that nobody here wrote over both transports."""

import asyncio
import dataclasses
import json
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from typer.testing import CliRunner

from agent_forge.agent import Call, Toolbox, ToolContext, load_tools
from agent_forge.checkpoint import Checkpoint
from agent_forge.cli.app import app
from agent_forge.cli.mcp_command import read_address
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.server.mcp import ROOMS
from agent_forge.server.mcp.catalogue import without_paths
from agent_forge.server.mcp.http import token_of
from agent_forge.server.mcp.offer import Offer, make_server
from agent_forge.server.mcp.registry import GitRegistry
from tests.conftest import forge_command, forge_environment
from tests.npm_packages import CLIENTS, installed
from tests.server.conftest import WAIT_SECONDS

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.org", "-c", "tag.gpgSign=false"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bare repository with two branches, two tags and two models."""
    work = tmp_path_factory.mktemp("registry") / "work"
    (work / "small").mkdir(parents=True)
    git(work, "init", "--quiet", "--initial-branch=main")
    (work / "config.json").write_text('{"model_type": "llama"}')
    (work / "README.md").write_text("# The model\n")
    (work / "model.safetensors").write_text(POINTER.format("a" * 64, 270_000_000))
    (work / "small" / "forge.json").write_text('{"phase": "compress"}')
    (work / "small" / "link").symlink_to("/etc/passwd")
    git(work, "add", ".")
    git(work, "commit", "--quiet", "-m", "one")
    git(work, "tag", "v1")
    git(work, "tag", "-a", "v1-signed", "-m", "annotated")
    git(work, "switch", "--quiet", "-c", "next")
    (work / "README.md").write_text("# The next model\n")
    git(work, "commit", "--quiet", "-am", "two")
    bare = work.parent / "models.git"
    git(work.parent, "clone", "--quiet", "--bare", "work", "models.git")
    return bare


def offer_in(place: Path, shelf: Checkpoint, remote: Path) -> Offer:
    """Return an offer of every room, with its memories and results in a directory."""
    return Offer(
        rooms=ROOMS, models=[shelf.path.parent], memory=str(place / "memory.db"),
        repository=str(remote), state=place / "state",
    )  # fmt: skip


@pytest.fixture
def offer(tmp_path: Path, shelf: Checkpoint, remote: Path) -> Offer:
    return offer_in(tmp_path, shelf, remote)


def ask(offer: Offer, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Return what a client in this process is told: values, and errors as texts."""

    async def all_of_them() -> list[Any]:
        async with Client(make_server(offer)) as client:
            answers = []
            for name, arguments in calls:
                result = await client.call_tool(name, arguments)
                text = "\n".join(getattr(block, "text", "") for block in result.content)
                structured = result.structured_content
                if result.is_error or structured is None:
                    answers.append(text)
                else:
                    answers.append(structured.get("result", structured))
            return answers

    return asyncio.run(all_of_them())


def test_every_tool_says_whether_it_changes_something(offer: Offer) -> None:
    async def listed() -> list[Any]:
        async with Client(make_server(offer)) as client:
            return (await client.list_tools()).tools

    tools = {tool.name: tool for tool in asyncio.run(listed())}
    assert len(tools) == 19
    assert all(tool.description and tool.annotations for tool in tools.values())
    changing = {name for name, tool in tools.items() if not tool.annotations.read_only_hint}
    assert changing == {"memory_remember", "memory_note", "memory_forget", "eval_run"}
    assert [n for n, t in tools.items() if t.annotations.destructive_hint] == ["memory_forget"]


def test_memories_last_across_servers(offer: Offer) -> None:
    ask(
        offer,
        ("memory_remember", {"fact": "holds 47", "about": "the red box"}),
        ("memory_note", {"session": "s1", "role": "user", "content": "where is the harbor?"}),
    )
    facts, episodes, sessions, forgotten, gone, empty = ask(
        offer,
        ("memory_recall", {"query": "red box"}),
        ("memory_search", {"query": "harbor"}),
        ("memory_sessions", {}),
        ("memory_forget", {"about": "the red box"}),
        ("memory_recall", {"query": "red box"}),
        ("memory_remember", {"fact": " "}),
    )
    assert facts == [{"about": "the red box", "fact": "holds 47"}]
    assert episodes[0]["content"] == "where is the harbor?"
    assert sessions == [{"session": "s1", "messages": 1}]
    assert forgotten == 1
    assert gone == []
    assert "the fact is empty" in empty


def test_checkpoints_go_by_id_and_name_and_no_path_leaves(offer: Offer, shelf: Checkpoint) -> None:
    answers = ask(
        offer,
        ("checkpoints_list", {}),
        ("checkpoints_manifest", {"checkpoint": shelf.id}),
        ("checkpoints_read", {"checkpoint": "tiny", "file": "config.json"}),
        ("checkpoints_verify", {"checkpoint": "tiny"}),
        ("checkpoints_read", {"checkpoint": "tiny", "file": "../tiny/config.json"}),
        ("checkpoints_read", {"checkpoint": "tiny", "file": "/etc/passwd"}),
        ("checkpoints_read", {"checkpoint": "tiny", "file": "model.safetensors"}),
        ("checkpoints_read", {"checkpoint": str(shelf.path), "file": "config.json"}),
        ("checkpoints_manifest", {"checkpoint": "tinny"}),
        ("eval_read", {"checkpoint": "tiny"}),
    )
    assert [row["id"] for row in answers[0]] == [shelf.id]
    assert answers[1]["name"] == "tiny"
    assert "model.safetensors" in answers[1]["files"]
    assert json.loads(answers[2])["model_type"] == "llama"
    assert answers[3] == "ok"
    assert all("cannot be read" in answer for answer in answers[4:7])
    assert "no checkpoint" in answers[7]
    assert "did you mean 'tiny'" in answers[8]
    assert answers[9]["evaluations"] == []
    everything = json.dumps(answers[:7] + answers[8:])
    assert str(shelf.path.parent) not in everything


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/me/models/tiny", "tiny"), ("../../secret/file", "file"), ("C:\\me\\x.gguf", "x.gguf"),
        ("~/x", "x"), ("outputs/bake", "bake"), ("a plain / sentence", "a plain / sentence"),
        ("https://example.org/a/b", "https://example.org/a/b"), (3, 3), ("cosine", "cosine"),
        ({"data": ["/a/b"], "n": None}, {"data": ["b"], "n": None}),
    ],
)  # fmt: skip
def test_paths_are_cut_down_to_their_last_name(value: Any, shown: Any) -> None:
    assert without_paths(value) == shown


def test_a_damaged_checkpoint_is_named_without_its_place(
    tmp_path: Path, tiny_checkpoint: Checkpoint
) -> None:
    copy = tmp_path / "models" / "tiny"
    shutil.copytree(tiny_checkpoint.path, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    offer = Offer(
        rooms=["checkpoints"], models=[copy.parent], memory="", repository="", state=tmp_path
    )
    (verdict,) = ask(offer, ("checkpoints_verify", {"checkpoint": "tiny"}))
    assert "model.safetensors" in verdict
    assert str(tmp_path) not in verdict


def test_the_registry_shows_versions_of_models_and_fetches_no_weights(offer: Offer) -> None:
    branches, tags, models, manifest, card, next_card, pointers, small = ask(
        offer,
        ("registry_branches", {}),
        ("registry_tags", {}),
        ("registry_models", {"ref": "main"}),
        ("registry_manifest", {"ref": "v1"}),
        ("registry_card", {"ref": "v1-signed"}),
        ("registry_card", {"ref": "next"}),
        ("registry_pointers", {"ref": "main"}),
        ("registry_manifest", {"ref": "main", "model": "small"}),
    )
    assert [row["name"] for row in branches] == ["main", "next"]
    assert [row["name"] for row in tags] == ["v1", "v1-signed"]
    # A tag is the commit that it names, annotated or not.
    assert {row["commit"] for row in tags} == {branches[0]["commit"]}
    assert models == [".", "small"]
    assert manifest == {"model_type": "llama"}
    assert (card, next_card) == ("# The model\n", "# The next model\n")
    assert pointers == [{"file": "model.safetensors", "sha256": "a" * 64, "bytes": 270_000_000}]
    assert small == {"phase": "compress"}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("registry_models", {"ref": "--upload-pack=touch x"}, "not the name of a branch"),
        ("registry_models", {"ref": "a..b"}, "not the name of a branch"),
        ("registry_models", {"ref": "nowhere"}, "cannot be read"),
        ("registry_manifest", {"ref": "main", "model": "../.."}, "no manifest"),
        ("registry_manifest", {"ref": "main", "model": "smal"}, "did you mean 'small'"),
        ("registry_card", {"ref": "main", "model": "small"}, "no card"),
        ("eval_run", {"checkpoint": "tiny", "tasks": ["txt"]}, "did you mean 'text'"),
        ("eval_run", {"checkpoint": "tiny", "tasks": ["text"], "split": "tset"}, "'test'"),
        ("eval_run", {"checkpoint": "tiny", "tasks": [], "items": 5}, "at least one task"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    offer: Offer, remote: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    (text,) = ask(offer, (name, arguments))
    assert message in text
    assert str(remote) not in text
    assert "\n" not in text


def test_a_registry_that_is_an_option_or_a_command_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="address"):
        GitRegistry("--upload-pack=touch x", tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        GitRegistry("ext::touch mark", tmp_path).refs("heads")
    assert not (Path.cwd() / "mark").exists()


def test_an_evaluation_runs_and_is_read_later(offer: Offer) -> None:
    result, again = ask(
        offer,
        ("eval_run", {"checkpoint": "tiny", "tasks": ["tools"], "items": 2}),
        ("eval_read", {"checkpoint": "tiny"}),
    )
    assert isinstance(result, dict), result
    assert [row["task"] for row in result["scores"]] == ["tools"]
    assert again["evaluations"] == [result]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rooms": ["memry"]}, "did you mean 'memory'"),
        ({"rooms": ["registry"], "repository": ""}, "--registry"),
        ({"rooms": ["checkpoints"], "models": [Path("none")]}, "no directory none"),
    ],
)
def test_an_offer_that_cannot_hold_is_refused(
    offer: Offer, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_server(dataclasses.replace(offer, **change))


@pytest.fixture(scope="module")
def over_http(
    tmp_path_factory: pytest.TempPathFactory, shelf: Checkpoint, remote: Path
) -> Iterator[tuple[str, str]]:
    """Run `forge mcp --http 0` for the tests of this file; yield its address and its token."""
    place = tmp_path_factory.mktemp("http")
    offer = offer_in(place, shelf, remote)
    words = [
        "mcp", "--http", "127.0.0.1:0", "--models", str(offer.models[0]), "--memory", offer.memory,
        "--registry", offer.repository, "--token-file", str(place / "token"),
    ]  # fmt: skip
    process = subprocess.Popen(
        forge_command(*words), env=forge_environment(XDG_STATE_HOME=str(place)),
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://\S+?(?=;)", line)
        assert address is not None, line + process.stderr.read()
        process.stderr.readline()
        assert stat.S_IMODE((place / "token").stat().st_mode) == 0o600
        yield address[0], (place / "token").read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=WAIT_SECONDS)


HELLO = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {},
               "clientInfo": {"name": "test", "version": "1"}},
}  # fmt: skip
HEADERS = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


def test_http_asks_for_the_key_and_refuses_foreign_hosts_and_origins(
    over_http: tuple[str, str],
) -> None:
    url, token = over_http
    right = {**HEADERS, "Authorization": f"Bearer {token}"}

    def post(headers: dict[str, str], body: Any = HELLO) -> int:
        return httpx2.post(url, json=body, headers=headers, timeout=WAIT_SECONDS).status_code

    assert post(HEADERS) == 401
    assert post({**right, "Authorization": "Bearer wrong"}) == 401
    assert post(right) == 200
    assert post({**right, "Host": "evil.example:80"}) == 421
    assert post({**right, "Origin": "http://evil.example"}) == 403
    assert post(right, {**HELLO, "params": {"x": "y" * 2**21}}) == 413


def test_a_token_comes_from_the_environment_or_a_private_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, is_new = token_of(tmp_path / "t")
    assert is_new
    assert token_of(tmp_path / "t") == (token, False)
    (tmp_path / "t").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        token_of(tmp_path / "t")
    monkeypatch.setenv("FORGE_MCP_TOKEN", "mine")
    assert token_of(tmp_path / "t") == ("mine", False)


def stdio_words(offer: Offer) -> list[str]:
    return forge_command(
        "mcp", "--models", str(offer.models[0]), "--memory", offer.memory,
        "--registry", offer.repository,
    )  # fmt: skip


def test_our_own_client_takes_the_tools_of_both_transports(
    offer: Offer, tmp_path: Path, over_http: tuple[str, str]
) -> None:
    def check(source: str) -> None:
        with ExitStack() as stack:
            box = Toolbox(load_tools([source], stack), ToolContext(timeout_seconds=60))
            assert len(box.names) == 19
            assert (
                box.run(Call("memory_remember", {"fact": "blue", "about": "sky"})).text == "stored"
            )
            assert "blue" in box.run(Call("memory_recall", {"query": "sky"})).text
            assert "denied" in box.run(Call("memory_forget", {"about": "sky"})).text

    config = tmp_path / "servers.json"
    command = stdio_words(offer)
    root = forge_environment()["PYTHONPATH"]
    config.write_text(json.dumps({"mcpServers": {"forge": {
        "command": command[0], "args": command[1:],
        "env": {"PYTHONPATH": root, "XDG_STATE_HOME": str(tmp_path)}}}}))  # fmt: skip
    check(str(config))
    url, token = over_http
    config.write_text(json.dumps({"mcpServers": {"forge": {
        "url": url, "headers": {"Authorization": f"Bearer {token}"}}}}))  # fmt: skip
    check(str(config))


@pytest.fixture(scope="session")
def node_clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory, "clients", CLIENTS)


TYPESCRIPT = """
import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, token, ...command] = JSON.parse(process.argv[2]);
const transport = url
  ? new StreamableHTTPClientTransport(new URL(url),
      { requestInit: { headers: { Authorization: `Bearer ${token}` } } })
  : new StdioClientTransport({ command: command[0], args: command.slice(1), env: process.env });
const client = new Client({ name: "test", version: "1" });
await client.connect(transport);
const { tools } = await client.listTools();
await client.callTool({ name: "memory_remember", arguments: { fact: "Ж", about: "letter" } });
const answer = await client.callTool({ name: "memory_recall", arguments: { query: "letter" } });
const wrong = await client.callTool({ name: "checkpoints_manifest", arguments: { checkpoint: "x" } });
console.log(JSON.stringify({ count: tools.length, fact: answer.structuredContent.result[0],
  wrong: wrong.isError, server: client.getServerVersion().name }));
await client.close();
"""


def run_node(place: Path, script: Path, *words: str) -> str:
    result = subprocess.run(
        ["node", str(script), *words], cwd=place.parent, capture_output=True, text=True,
        timeout=WAIT_SECONDS, check=False, env=forge_environment(), stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:] + result.stdout[-2000:]
    return result.stdout


def test_the_typescript_client_works_over_both_transports(
    offer: Offer, node_clients: Path, over_http: tuple[str, str]
) -> None:
    script = node_clients.parent / "client.mjs"
    script.write_text(TYPESCRIPT)
    expected = {"count": 19, "fact": {"about": "letter", "fact": "Ж"}, "wrong": True,
                "server": "agent-forge"}  # fmt: skip
    stdio = run_node(node_clients, script, json.dumps(["", "", *stdio_words(offer)]))
    assert json.loads(stdio.splitlines()[-1]) == expected
    http = run_node(node_clients, script, json.dumps(over_http))
    assert json.loads(http.splitlines()[-1]) == expected


def test_the_inspector_works_over_both_transports(
    offer: Offer, tmp_path: Path, node_clients: Path, over_http: tuple[str, str]
) -> None:
    inspector = node_clients / "@modelcontextprotocol" / "inspector" / "cli" / "build" / "cli.js"
    command, config = stdio_words(offer), tmp_path / "servers.json"
    environment = {"PYTHONPATH": forge_environment()["PYTHONPATH"]}
    config.write_text(json.dumps({"mcpServers": {"forge": {
        "command": command[0], "args": command[1:], "env": environment}}}))  # fmt: skip
    called = run_node(
        node_clients, inspector, "--cli", "--config", str(config), "--server", "forge",
        "--method", "tools/call", "--tool-name", "registry_models", "--tool-arg", "ref=main",
    )  # fmt: skip
    assert json.loads(called)["structuredContent"] == {"result": [".", "small"]}
    url, token = over_http
    listed = run_node(
        node_clients, inspector, "--cli", url, "--transport", "http",
        "--header", f"Authorization: Bearer {token}", "--method", "tools/list",
    )  # fmt: skip
    assert len(json.loads(listed)["tools"]) == 19


def test_an_address_that_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for address, words in (
            (str(port), f"cannot listen on 127.0.0.1:{port}: Address already in use"),
            ("0.0.0.0:0", "--http 0.0.0.0 lets other machines in; add --allow-network"),
            ("192.0.2.1:0", "lets other machines in"),
        ):
            ended = CliRunner().invoke(
                app, ["mcp", "--http", address, "--models", str(tmp_path), "--token-file",
                      str(tmp_path / "token")],
            )  # fmt: skip
            assert ended.exit_code == 2
            assert words in ended.stderr
            assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "token").exists()


def test_http_addresses_are_read() -> None:
    assert read_address("8090") == ("127.0.0.1", 8090)
    assert read_address("0.0.0.0:80") == ("0.0.0.0", 80)
    assert read_address("[::1]:80") == ("::1", 80)
    for text in ("", "x", "host:", "70000"):
        with pytest.raises(ConfigError, match="PORT"):
            read_address(text)
