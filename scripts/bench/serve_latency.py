"""How long the service lets a client wait while a phase trains on the same cores.

    python -m scripts.bench run serve_latency [--seconds 60] [--rate 100] [--no-training]

Starts a server whose jobs are stubs, except that `cognate` is the real phase, and sends it requests
at a constant rate: status, list of models, and start, in turn. A request is due at a fixed time
whatever happened to those before it, and its latency counts from there, so that a server that
stalls is charged for every request that it kept waiting (no coordinated omission). First without a
job that trains, then beside one. Refuses to judge a machine that is busy with other work.

Reads and writes a temporary directory only.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.result import ROOT, Figure, Result, bars_met, here

CLAIM = "The service answers in time while a phase trains on the same cores"
BAR = "99% of requests within 200 ms beside training, within 20 ms without"

BUSY = 10.0  # percent of the time that something waited for a processor; above, nothing is judged
BESIDE_MS, ALONE_MS = 200.0, 20.0
START_SECONDS = 120.0
# Until the first step of a phase that gives way to whatever else the machine does.
TRAINING_SECONDS = 400.0


@dataclass
class Server:
    """A server that runs. pressure: of the processors before it was started."""

    url: str
    key: str
    process: "subprocess.Popen[bytes]"

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Return the JSON that a path answers. method: GET, or POST where there is a body."""
        request = urllib.request.Request(
            f"{self.url}{path}",
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {self.key}", "content-type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)


def pressure() -> float:
    """Return the share of the last ten seconds, in percent, in which a task waited for a core."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/pressure/cpu").read_text().splitlines():
            if line.startswith("some"):
                return float(line.split("avg10=")[1].split()[0])
    return 0.0


@contextlib.contextmanager
def served(*options: str, port: int = 0) -> Iterator[Server]:
    """Start a server with stub jobs in a directory of its own, and end it with its jobs."""
    with tempfile.TemporaryDirectory(prefix="serve-") as place:
        state = Path(place) / "state"
        port = port or free_port()
        server = start(state, port, *options)
        try:
            yield server
        finally:
            with contextlib.suppress(OSError):
                server.call("/v1/queue", {"paused": True}, "PUT")  # what waits must not begin
                for job in server.call("/v1/jobs?state=running"):
                    with contextlib.suppress(OSError):  # it has ended meanwhile
                        server.call(f"/v1/jobs/{job['id']}/cancel", {})
                until(lambda: not active(server))
            server.process.terminate()
            server.process.wait(60)


def active(server: Server) -> list[Any]:
    """Return the jobs that have a process."""
    states = ("running", "cancelling")
    return [job for state in states for job in server.call(f"/v1/jobs?state={state}")]


def start(state: Path, port: int, *options: str) -> Server:
    """Start a server and wait until it answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_stubs", *options, "--port", str(port),
         "--state", str(state), "--watch", str(state), "--requests-per-minute", "1000000"],
        cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, start_new_session=True,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with code {process.returncode}")
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/healthz", timeout=5):
            return True
        return False

    try:
        until(answers)
    except SystemExit:
        process.kill()
        process.wait()
        raise
    return Server(url, (state / "first-key").read_text().strip(), process)


def until(condition: Any, seconds: float = START_SECONDS) -> None:
    """Wait until a condition holds. Raises SystemExit after a while."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the condition did not come to hold")
        time.sleep(0.1)


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def load(server: Server, rate: float, seconds: float) -> tuple[list[float], int]:
    """Send requests at a constant rate; return (latencies in ms from the due time, failures)."""
    import httpx2

    body = {"phase_name": "bitnet", "config": {"train": {"steps": 1}}}
    kinds = (("GET", "/phases/status", None), ("GET", "/models/list", None),
             ("POST", "/phases/start", body))  # fmt: skip
    latencies: list[float] = []
    failures = 0
    headers = {"authorization": f"Bearer {server.key}"}
    limits = httpx2.Limits(max_connections=200, max_keepalive_connections=200)
    async with httpx2.AsyncClient(
        base_url=server.url, headers=headers, timeout=60, limits=limits, trust_env=False
    ) as client:

        async def one(kind: tuple[str, str, Any], due: float) -> None:
            nonlocal failures
            answer = await client.request(kind[0], kind[1], json=kind[2])
            latencies.append(1000 * (time.perf_counter() - due))
            failures += answer.status_code >= 300

        for kind in kinds:  # connections, imports and caches; a service is judged warm
            await one(kind, time.perf_counter())
        latencies.clear()
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for number in range(int(rate * seconds)):
                due = begun + number / rate
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                tasks.create_task(one(kinds[number % len(kinds)], due))
    return latencies, failures


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def measured(name: str, rate: float, seconds: float, *, training: bool) -> list[Figure]:
    """Measure one server; return its figures."""
    with served("--give-way") as server:
        if training:
            server.call(
                "/phases/start", {"phase_name": "cognate", "config": {"trunk": {"steps": 10**6}}}
            )
            until(lambda: server.call("/phases/status")["progress"] > 0, TRAINING_SECONDS)
        latencies, failures = asyncio.run(load(server, rate, seconds))
        progress = server.call("/phases/status")
    bar = BESIDE_MS if training else ALONE_MS
    p99 = percentile(latencies, 0.99)
    count = f"{len(latencies):,} requests, {failures} failed"
    print(f"{name}: p50 {percentile(latencies, 0.5):.1f} ms, p99 {p99:.1f} ms, worst "
          f"{max(latencies):.1f} ms, {count}; at the end {progress}")  # fmt: skip
    return [
        Figure(claim=f"p99 latency {name}", figure=p99, unit="ms", n=count, bar=f"< {bar:g} ms",
               met=p99 < bar and not failures, key=f"p99_{'beside' if training else 'alone'}"),
        Figure(claim=f"median latency {name}", figure=percentile(latencies, 0.5), unit="ms", n=count),
    ]  # fmt: skip


def run(arguments: Sequence[str]) -> Result:
    """Measure alone and beside training. Exits where the machine is busy."""
    parser = argparse.ArgumentParser(prog="serve_latency")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--no-training", action="store_true", help="only without a phase")
    parser.add_argument("--busy", type=float, default=BUSY, help="pressure above which it refuses")
    chosen = parser.parse_args(arguments)
    waited = pressure()
    if waited > chosen.busy:
        raise SystemExit(
            f"the processors are busy ({waited:g}% of the last ten seconds, /proc/pressure/cpu): "
            "nothing can be said of latency here now"
        )
    figures = measured("without a phase", chosen.rate, chosen.seconds, training=False)
    if not chosen.no_training:
        figures += measured("beside training", chosen.rate, chosen.seconds, training=True)
    return Result(
        claim=CLAIM, bar=BAR, **bars_met(figures), topic="Service",
        **here("serve_latency", arguments), figures=figures,
        note=f"{chosen.rate:g} requests per second for {chosen.seconds:g} s, a third each of status, "
        f"list and start, from the due time; pressure before it was {waited:g}%.",
    )  # fmt: skip


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    run(sys.argv[1:])
