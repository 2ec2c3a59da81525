"""A server in a process of its own, and clients that nobody here wrote: curl and websockets."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets
from typer.testing import CliRunner

from agent_forge.cli.app import app
from tests.conftest import forge_environment
from tests.server.conftest import WAIT_SECONDS, until

QUICK = {"phase_name": "bitnet", "config": {"train": {"steps": 20}}}
SLOW = {"phase_name": "bitnet", "config": {"train": {"steps": 40}, "gate": {"samples": 50}}}
# Requests per route; more search deeper: FORGE_FUZZ_EXAMPLES=50.
EXAMPLES = os.environ.get("FORGE_FUZZ_EXAMPLES", "1")


class Running:
    """One `forge serve` process. It may be killed and started again on the same port."""

    def __init__(self, state: Path, port: int) -> None:
        self.state, self.port = state, port
        self.start()
        self.key = (state / "first-key").read_text().strip()

    def start(self) -> None:
        self.log = (self.state.parent / "serve.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.serve_stubs", "--port", str(self.port),
             "--state", str(self.state), "--watch", str(self.state.parent / "watched"),
             "--requests-per-minute", "100000"],
            cwd=Path(__file__).parents[2], env=forge_environment(), stderr=self.log,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            until(lambda: self._answers() or self.process.poll() is not None)
            assert self.process.poll() is None, (self.state.parent / "serve.log").read_text()
        except AssertionError:
            self.process.kill()
            self.process.wait()
            self.log.close()
            raise

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(WAIT_SECONDS)
        self.log.close()
        return code

    def call(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_SECONDS)
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        connection.close()
        assert answer.status < 400, content
        return content

    def curl(self, path: str, *options: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["curl", "--silent", "--show-error", "--path-as-is", *options,
             f"http://127.0.0.1:{self.port}{path}"],
            capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
        )  # fmt: skip

    def connect(self) -> Any:
        headers = {"authorization": f"Bearer {self.key}"}
        return websockets.connect(
            f"ws://127.0.0.1:{self.port}/ws", additional_headers=headers, proxy=None
        )

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/healthz")
            with connection.getresponse() as answer:
                return answer.status == 200
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    place = tmp_path_factory.mktemp("real")
    (place / "watched").mkdir()
    server = Running(place / "state", free_port())
    yield server
    if server.process.poll() is None:
        server.stop()


def finished(server: Running, body: Any = None) -> str:
    task_id = server.call("POST", "/phases/start", body or QUICK)["task_id"]
    until(lambda: server.call("GET", f"/v1/jobs/{task_id}")["state"] == "succeeded")
    return str(task_id)


def listened(running: Running, request: list[str], last: int) -> str:
    """Return what curl has read of a stream, which has no end, once event `last` has come."""
    address = f"http://127.0.0.1:{running.port}{request[0]}"
    command = ["curl", "-s", "-N", "--max-time", str(WAIT_SECONDS), *request[1:], address]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as child:
        assert child.stdout is not None
        for line in child.stdout:
            lines.append(line)
            if line.strip() == f"id: {last}":
                break
        child.kill()
    return "".join(lines)


def test_curl_goes_on_behind_the_last_event_that_it_has(running: Running) -> None:
    finished(running)
    last = running.call("GET", "/v1/service")["last_seq"]
    key = f"authorization: Bearer {running.key}"
    whole = listened(running, ["/v1/events?after=0", "-H", key], last)
    ids = [int(line.removeprefix("id: ")) for line in whole.splitlines() if line.startswith("id: ")]
    assert ids == list(range(1, last + 1))
    rest = listened(running, ["/v1/events", "-H", key, "-H", f"Last-Event-ID: {last - 3}"], last)
    ids = [int(line.removeprefix("id: ")) for line in rest.splitlines() if line.startswith("id: ")]
    assert ids == [last - 2, last - 1, last]
    names = {
        line.removeprefix("event: ") for line in whole.splitlines() if line.startswith("event:")
    }
    assert {"state", "progress", "complete"} <= names
    data = [
        json.loads(line.removeprefix("data: "))
        for line in whole.splitlines()
        if line.startswith("data:")
    ]
    assert [one["seq"] for one in data] == list(range(1, last + 1))


def test_a_killed_server_loses_no_event_of_a_job_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    server = Running(tmp_path / "state", free_port())
    task_id = server.call("POST", "/phases/start", SLOW)["task_id"]

    async def follow() -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = []
        kills = 0
        while not messages or messages[-1]["type"] not in ("complete", "error"):
            with contextlib.suppress(websockets.ConnectionClosed, OSError):
                async with server.connect() as client:
                    after = messages[-1]["seq"] if messages else 0
                    await client.send(json.dumps(
                        {"type": "subscribe", "channel": "phase_updates", "after": after}
                    ))  # fmt: skip
                    async for text in client:
                        message = json.loads(text)
                        if message["type"] in ("heartbeat", "subscribed"):
                            continue
                        messages.append(message)
                        if message["type"] in ("complete", "error"):
                            break
                        if not kills and message.get("step", 0) >= 10:
                            kills += 1
                            await asyncio.to_thread(server.stop, signal.SIGKILL)
                            await asyncio.to_thread(server.start)
        assert kills == 1
        return messages

    try:
        messages = asyncio.run(follow())
        numbers = [message["seq"] for message in messages]
        assert numbers == list(range(1, len(numbers) + 1))
        steps = [message["step"] for message in messages if message["type"] == "progress"]
        assert steps == sorted(set(steps))
        assert steps[-1] == 40
        assert messages[-1]["results"]["status"] == "succeeded"
        assert {message["task_id"] for message in messages} == {task_id}
        assert server.call("GET", f"/v1/jobs/{task_id}")["attempt"] == 1, "it was never restarted"
    finally:
        server.stop()


def test_a_signal_ends_the_server_at_once_and_no_job(tmp_path: Path) -> None:
    (tmp_path / "watched").mkdir()
    server = Running(tmp_path / "state", free_port())
    task_id = server.call("POST", "/phases/start", SLOW)["task_id"]
    until(lambda: server.call("GET", f"/v1/jobs/{task_id}")["progress"] > 0)

    async def stop_while_listening() -> int:
        async with server.connect() as client:
            await client.send('{"type": "subscribe", "channel": "phase_updates", "after": 0}')
            await client.recv()
            code = await asyncio.to_thread(server.stop)
            with contextlib.suppress(websockets.ConnectionClosedError):
                async for _ in client:
                    pass
            assert client.close_code == 1012
            return code

    key = f"authorization: Bearer {server.key}"
    listener = subprocess.Popen(
        ["curl", "-sN", "-H", key, f"http://127.0.0.1:{server.port}/v1/events"],
        stdout=subprocess.DEVNULL,
    )
    assert asyncio.run(stop_while_listening()) == 0
    assert listener.wait(WAIT_SECONDS) in (0, 18), "the stream was ended, not waited for"
    server.start()
    try:
        until(lambda: server.call("GET", f"/v1/jobs/{task_id}")["state"] == "succeeded")
        assert server.call("GET", f"/v1/jobs/{task_id}")["attempt"] == 1
    finally:
        server.stop()


@pytest.mark.timeout(1800)
def test_schemathesis_meets_no_undeclared_status_and_no_defect(running: Running) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
         f"http://127.0.0.1:{running.port}/openapi.json", "-H", f"authorization: Bearer {running.key}",
         "--checks", "not_a_server_error,status_code_conformance,content_type_conformance,"
         "response_schema_conformance", "--phases", "fuzzing", "--max-examples", EXAMPLES,
         "--exclude-path", "/v1/events",  # it has no end
         "--generation-deterministic", "--no-color",
         "--request-timeout", "60", "--continue-on-failure"],
        capture_output=True, text=True, check=False, cwd=running.state,
        env=forge_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_no_key_is_in_the_database_the_logs_or_the_list_of_processes(running: Running) -> None:
    finished(running)
    secret = running.key.split("_", 2)[2].encode()
    for file in running.state.rglob("*"):
        if file.is_file() and file.name != "first-key":
            assert secret not in file.read_bytes(), file
    assert secret not in (running.state.parent / "serve.log").read_bytes()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            assert secret not in (process / "cmdline").read_bytes()
            if os.stat(process).st_uid == os.getuid():
                assert secret not in (process / "environ").read_bytes()


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/v1/checkpoints/../../etc/passwd", "/v1/jobs/%2e%2e%2f%2e%2e/log",
     "/v1/checkpoints/..%252f/files/x", "/v1/checkpoints/x/files/../../../etc/passwd", "//etc/passwd",
     "/v1/exports/..\\..\\x/y", "/v1/jobs/a%00b", "/./v1/../etc/passwd"],
)  # fmt: skip
def test_paths_as_they_are_written_lead_nowhere(running: Running, path: str) -> None:
    key = f"authorization: Bearer {running.key}"
    answer = running.curl(path, "-H", key, "-o", "-", "-w", "\n%{http_code}")
    assert answer.stdout.rpartition("\n")[2] in ("404", "405", "422", "400"), answer.stdout
    assert "root:" not in answer.stdout


def test_foreign_names_and_pages_are_refused_on_the_wire(running: Running) -> None:
    key = f"authorization: Bearer {running.key}"
    for line, code in (
        ("host: evil.example", "421"), ("origin: https://evil.example", "403"),
        ("sec-fetch-site: cross-site", "403"),
    ):  # fmt: skip
        answer = running.curl("/v1/jobs", "-H", key, "-H", line, "-w", "\n%{http_code}")
        assert answer.stdout.rpartition("\n")[2] == code

    async def foreign() -> int:
        try:
            async with websockets.connect(
                f"ws://127.0.0.1:{running.port}/ws", origin="https://evil.example", proxy=None,
                additional_headers={"authorization": f"Bearer {running.key}"},
            ):  # fmt: skip
                return 101
        except websockets.InvalidStatus as refused:
            return refused.response.status_code

    assert asyncio.run(foreign()) == 403


def refused(*options: str) -> Any:
    """Run `forge serve` with options that it refuses; return what it has said."""
    ended = CliRunner().invoke(app, ["serve", *options])
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    return ended


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        ended = refused("--port", port, "--state", str(tmp_path / "s"))
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert not (tmp_path / "s").exists(), "nothing was opened"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "--port", "0"], "--split takes 4 ports in a row"),
        (["--split", "--port", "65533"], "--split takes 4 ports in a row"),
        (["--mcp", "memory,checkpoint"], "did you mean 'checkpoints'"),
        (["--mcp", "registry"], "the room registry needs --mcp-registry ADDRESS"),
        (["--split", "--mcp", "memry"], "did you mean 'memory'"),
        (["--launcher", "nowhere.yaml"], "--launcher nowhere.yaml: cannot be read"),
        (["--split", "--launcher", "nowhere.yaml"], "--launcher nowhere.yaml: cannot be read"),
        (["--allow-origin", "evil.example"], "write it as https://name:port"),
        (["--data", "x=/nowhere/at/all"], "there is nothing at"),
    ],
)
def test_what_cannot_be_served_is_one_line_before_anything_is_opened(
    tmp_path: Path, options: list[str], words: str
) -> None:
    assert words in refused(*options, "--state", str(tmp_path / "s")).stderr
    assert not (tmp_path / "s").exists()


def test_other_machines_are_let_in_on_demand_only(tmp_path: Path) -> None:
    ended = refused("--host", "0.0.0.0", "--port", "0", "--state", str(tmp_path))
    assert "--allow-network" in ended.stderr


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from agent_forge.cli import serving
    from agent_forge.core.errors import ConfigError

    monkeypatch.setattr(serving.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"pip install 'agent-forge\[serve\]'"):
        serving.require_extra()
