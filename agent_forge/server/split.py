"""`forge serve --split`: four processes on four ports, of which one owns the database.

The parent starts the control part, waits until it answers, then starts chat, updates and models on
the next ports. A part that dies is started again; a signal ends all of them, and no job. Where the
parent is killed, the kernel ends its parts, so that their ports are free for the next one.
"""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from types import FrameType

from agent_forge.core.errors import ConfigError
from agent_forge.server.listening import bound, reachable
from agent_forge.server.service import CONTROL, MODELS, PARTS
from agent_forge.server.serving import ServeSettings

START_SECONDS = 60.0
STOP_SECONDS = 20.0
LOOK_SECONDS = 0.5
HIGHEST_PORT = 65535
MOST_STARTS = 5  # more starts of one part within a minute are a defect


@dataclass(slots=True)
class Part:
    """One process. starts: when it was started, seconds of the monotonic clock."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    starts: list[float]


def origins(settings: ServeSettings, control_port: int) -> tuple[str, ...]:
    """Return the origins of all four ports: pages of one may ask the others."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    names = dict.fromkeys((host, "localhost", "127.0.0.1"))
    return tuple(f"http://{name}:{control_port + place}" for name in names
                 for place in range(len(PARTS)))  # fmt: skip


def connects(settings: ServeSettings) -> None:
    """Let a part of a split service know the ports of the others."""
    siblings = origins(settings, settings.control_port)
    settings.origins = (*settings.origins, *siblings)
    settings.connect = siblings


def serve_split(settings: ServeSettings, *, as_json: bool = False) -> int:
    """Serve on four ports until a signal; return the exit code.

    Raises ConfigError when a port is taken, or a part does not start.
    """
    settings.check()
    if not 0 < settings.port <= HIGHEST_PORT - len(PARTS) + 1:
        raise ConfigError(
            f"--split takes {len(PARTS)} ports in a row from --port on, got --port {settings.port}"
        )
    ports = {name: settings.port + place for place, name in enumerate(PARTS)}
    for port in ports.values():
        bound(settings.host, port).close()
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        stopping.append(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    parts: list[Part] = []
    try:
        for name, port in ports.items():
            parts.append(
                Part(name, port, _start(settings, name, port, as_json), [time.monotonic()])
            )
            if name == CONTROL:
                _wait_until_it_answers(parts[0], settings.host, stopping)
        while not stopping:
            time.sleep(LOOK_SECONDS)
            for part in parts:
                _start_again(part, settings, as_json)
        return 0
    finally:
        _end(parts)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start(
    settings: ServeSettings, name: str, port: int, as_json: bool
) -> "subprocess.Popen[bytes]":
    command = [
        sys.executable, "-m", "agent_forge", "serve", "--part", name, "--part-of",
        str(os.getpid()), "--port", str(port),
        "--control-port", str(settings.port), "--host", settings.host, "--state",
        str(settings.state), "--requests-per-minute", str(settings.requests_per_minute),
        "--model-memory-mib", str(settings.model_memory_bytes >> 20),
    ]  # fmt: skip
    for option, values in (
        ("--watch", settings.watch), ("--allow-host", settings.hosts),
        ("--allow-origin", settings.origins),
        ("--data", [f"{key}={value}" for key, value in settings.data.items()]),
        ("--import", [f"{key}={value}" for key, value in settings.imports.items()]),
    ):  # fmt: skip
        for value in values:
            command += [option, str(value)]
    if settings.mcp_rooms and name == MODELS:
        command += ["--mcp", ",".join(settings.mcp_rooms)]
        command += ["--mcp-registry", settings.mcp_repository]
    if settings.launcher is not None and name == CONTROL:
        command += ["--launcher", str(settings.launcher)]
    if settings.audit_heads:
        command += ["--audit-heads", settings.audit_heads]
    command += ["--allow-network"] * settings.allow_network + ["--json"] * as_json
    # In a session of its own, so that Ctrl-C reaches the parent alone, which passes it on.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)


def _start_again(part: Part, settings: ServeSettings, as_json: bool) -> None:
    """Start a part again that has died. Raises ConfigError when it dies again and again."""
    if part.process.poll() is None:
        return
    now = time.monotonic()
    part.starts = [one for one in part.starts if now - one < 60.0]
    if len(part.starts) >= MOST_STARTS:
        raise ConfigError(f"the part {part.name} has died {MOST_STARTS} times within a minute")
    print(f"forge serve: {part.name} has died; it is started again", file=sys.stderr, flush=True)
    part.process = _start(settings, part.name, part.port, as_json)
    part.starts.append(now)


def _wait_until_it_answers(part: Part, host: str, stopping: list[int]) -> None:
    """Wait until a part answers, or a signal comes. Raises ConfigError when it does not start."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and not stopping:
        if part.process.poll() is not None:
            raise ConfigError(f"the part {part.name} did not start; see the line above")
        connection = http.client.HTTPConnection(reachable(host), part.port, timeout=2.0)
        with (
            contextlib.closing(connection),
            contextlib.suppress(OSError, http.client.HTTPException),
        ):
            connection.request("GET", "/healthz")
            with connection.getresponse() as answer:
                if answer.status == 200:
                    return
        time.sleep(0.1)
    if not stopping:
        raise ConfigError(f"the part {part.name} does not answer on {host}:{part.port}")


def _end(parts: list[Part]) -> None:
    for part in parts:
        if part.process.poll() is None:
            part.process.terminate()
    for part in parts:
        try:
            part.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            part.process.kill()
            part.process.wait()
