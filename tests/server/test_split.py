"""`forge serve --split`: four processes, as a user starts them, on four ports of this machine."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import websockets

from agent_forge.agent import Call, Toolbox, ToolContext, load_tools
from tests.server.conftest import WAIT_SECONDS, until
from tests.server.test_real_server import free_port

PARTS = ("control", "chat", "updates", "models")
LOOPBACK, LOOPBACK_6 = "127.0.0.1", "::1"


class Split:
    """A split service: the port of each part, and requests to them."""

    def __init__(self, place: Path, host: str, start_forge: Any, *options: str) -> None:
        self.host, self.state = host, place / "state"
        first = free_ports(host)
        self.ports = dict(zip(PARTS, range(first, first + len(PARTS)), strict=True))
        self.process: subprocess.Popen[str] = start_forge(
            "serve", "--split", "--host", host, "--port", str(first), "--state", str(self.state),
            "--watch", str(place), *options,
        )  # fmt: skip
        for part in PARTS:
            until(lambda part=part: self.answers(part))  # type: ignore[misc]

    @property
    def key(self) -> str:
        return (self.state / "first-key").read_text().strip()

    def ask(
        self, part: str, method: str, path: str, body: Any = None, key: str = ""
    ) -> tuple[int, Any]:
        """Return the status and the JSON of an answer."""
        connection = http.client.HTTPConnection(self.host, self.ports[part], timeout=WAIT_SECONDS)
        headers = {"authorization": f"Bearer {key or self.key}"}
        if body is not None:
            headers["content-type"] = "application/json"
        with contextlib.closing(connection):
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            with connection.getresponse() as answer:
                return answer.status, json.loads(answer.read())

    def answers(self, part: str) -> bool:
        assert self.process.poll() is None, self.process.communicate()
        with contextlib.suppress(OSError):
            is_ready = (self.state / "first-key").exists()
            return is_ready and self.ask(part, "GET", "/healthz")[0] == 200
        return False

    def is_closed(self) -> bool:
        """Return whether nobody listens on any of the ports."""
        for port in self.ports.values():
            with contextlib.suppress(OSError):
                socket.create_connection((self.host, port), timeout=5).close()
                return False
        return True


def free_ports(host: str) -> int:
    """Return the first of four ports in a row that were free a moment ago."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        first = free_port()
        with contextlib.suppress(OSError), ExitStack() as stack:
            for port in range(first, first + len(PARTS)):
                stack.enter_context(socket.create_server((host, port), family=family))
            return first


@pytest.fixture
def split(tmp_path: Path, start_forge: Any) -> Iterator[Callable[..., Split]]:
    """Return a function that starts a split service; it is stopped with the test."""
    started: list[Split] = []

    def start(host: str, *options: str) -> Split:
        started.append(Split(tmp_path, host, start_forge, *options))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.terminate()
            one.process.communicate(timeout=WAIT_SECONDS)


async def started_over_the_socket(service: Split) -> dict[str, Any]:
    """Start a phase on the door for updates, and hear of it there."""
    async with websockets.connect(
        f"ws://{service.host}:{service.ports['updates']}/ws", proxy=None,
        additional_headers={"authorization": f"Bearer {service.key}"},
    ) as client:  # fmt: skip
        await client.send('{"type": "subscribe", "channel": "phase_updates", "after": 0}')
        await client.send('{"type": "start_phase", "phase": "bitnet"}')
        messages: dict[str, dict[str, Any]] = {}
        while not {"started", "state"} <= set(messages):
            message = json.loads(await client.recv())
            messages[message["type"]] = message
        assert messages["state"]["task_id"] == messages["started"]["task_id"]
        return messages["started"]


def test_a_split_service_is_four_doors_to_one_database(
    tmp_path: Path, split: Callable[..., Split]
) -> None:
    service = split(LOOPBACK, "--mcp", "memory,checkpoints")
    ask = service.ask
    assert [ask(part, "GET", "/v1/service")[1]["parts"] for part in PARTS] == [[p] for p in PARTS]
    for part in PARTS:
        assert ask(part, "GET", "/v1/service", key="forge_wrong")[0] == 401
    assert ask("control", "PUT", "/v1/queue", {"paused": True})[0] == 200
    task_id = asyncio.run(started_over_the_socket(service))["task_id"]
    assert ask("control", "GET", f"/phases/status?task_id={task_id}")[0] == 200
    assert ask("control", "POST", f"/v1/jobs/{task_id}/cancel")[0] == 200
    assert ask("models", "GET", "/models/list") == (200, [])
    status, answer = ask("models", "POST", "/models/create", {"type": "bitnet"})
    assert status == 202
    cancelling = f"/v1/jobs/{answer['metadata']['task_id']}/cancel"
    assert ask("control", "POST", cancelling)[0] == 200
    status, refusal = ask("models", "POST", "/models/create", {"type": "nothing"})
    assert status == 422
    assert "no type 'nothing'" in refusal["error"]["message"]
    assert ask("models", "POST", "/phases/start", {"phase_name": "bitnet"})[0] == 404
    assert ask("updates", "POST", "/v1/tickets")[0] == 200
    check_mcp(service, tmp_path)
    service.process.terminate()
    _, errors = service.process.communicate(timeout=WAIT_SECONDS)
    assert service.process.returncode == 0, errors
    assert service.is_closed()


def check_mcp(service: Split, place: Path) -> None:
    """Use MCP on the door for models, where alone it is."""
    for part in ("control", "chat", "updates"):
        assert service.ask(part, "POST", "/mcp", {})[0] == 404
    assert service.ask("models", "POST", "/mcp", {}, key="forge_wrong")[0] == 401
    config = place / "servers.json"
    url = f"http://{service.host}:{service.ports['models']}/mcp"
    headers = {"Authorization": f"Bearer {service.key}"}
    config.write_text(json.dumps({"mcpServers": {"forge": {"url": url, "headers": headers}}}))
    with ExitStack() as stack:
        box = Toolbox(load_tools([str(config)], stack), ToolContext(timeout_seconds=WAIT_SECONDS))
        assert sum(name.startswith("memory_") for name in box.names) == 6
        box.run(Call("memory_remember", {"fact": "blue", "about": "sky"}))
        assert "blue" in box.run(Call("memory_recall", {"query": "sky"})).text
        assert json.loads(box.run(Call("checkpoints_list", {})).text) == {"result": []}


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as one:
        one.bind((LOOPBACK_6, 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_parts_find_each_other_on_any_address_and_end_with_a_killed_parent(
    split: Callable[..., Split],
) -> None:
    service = split(LOOPBACK_6)
    status, answer = service.ask("models", "POST", "/models/create", {"type": "nothing"})
    assert (status, "no type 'nothing'" in answer["error"]["message"]) == (422, True)
    os.kill(service.process.pid, signal.SIGKILL)
    service.process.communicate(timeout=WAIT_SECONDS)
    until(service.is_closed)
