"""Whether 200 clients that come and go, and a server that is killed, lose or repeat an event.

    python -m scripts.bench run serve_clients [--clients 200] [--steps 600] [--kills 2]

Half of the clients listen on a WebSocket (the websockets package), half to server-sent events
(httpx2). Each leaves at random and comes back with the number of the last message that it has, while
a stub job counts; the server is killed with SIGKILL and started again on the same port. At the end
every client must hold the numbers 1 to the last, each once. A message that a client was there to
hear has a delay: from the time that the job wrote on the event to the client's reading of it. Reads
and writes a temporary directory.
"""

import argparse
import asyncio
import contextlib
import json
import math
import random
import signal
import ssl
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from scripts.bench.result import Figure, Result, bars_met, here
from scripts.bench.serve_latency import BUSY, Server, free_port, percentile, pressure, start

CLAIM = "No event is lost or repeated by 200 clients that come and go and a server that is killed"
BAR = "every client has every number once; what happens while it listens within 2 s"

PAUSE_SECONDS = 0.2  # before a client comes back
LIMIT_SECONDS = 300.0
LIVE_SECONDS = 2.0


class Listener(ABC):
    """One client: the numbers that it has got, in order, and the delays of what it heard live."""

    def __init__(self, server: Server, generator: random.Random) -> None:
        self.server, self.generator = server, generator
        self.numbers: list[int] = []
        self.delays: list[float] = []
        self.present_since = math.inf
        self.visits = 0
        self.done = False

    async def listen(self) -> None:
        """Come and go until the job has ended."""
        import httpx2
        import websockets

        gone = (OSError, websockets.WebSocketException, httpx2.HTTPError, TimeoutError)
        while not self.done:
            self.visits += 1
            self.present_since = math.inf
            with contextlib.suppress(*gone):
                await self.visit(self.generator.randint(20, 200))
            await asyncio.sleep(PAUSE_SECONDS * self.generator.random())

    @abstractmethod
    async def visit(self, patience: int) -> None:
        """Listen for some messages."""

    def take(self, text: str) -> None:
        """Note a message."""
        message = json.loads(text)
        if message["type"] in ("heartbeat", "subscribed"):
            return
        self.numbers.append(message["seq"])
        if message["time"] > self.present_since:
            self.delays.append(time.time() - message["time"])
        self.done = message["type"] in ("complete", "error")

    @property
    def last(self) -> int:
        """Return the last number, 0 before the first."""
        return self.numbers[-1] if self.numbers else 0


class OnSocket(Listener):
    """A client of the WebSocket."""

    async def visit(self, patience: int) -> None:
        """Listen for some messages."""
        import websockets

        url = self.server.url.replace("http", "ws", 1) + "/ws"
        headers = {"authorization": f"Bearer {self.server.key}"}
        async with websockets.connect(url, additional_headers=headers, proxy=None) as socket:
            await socket.send(
                json.dumps({"type": "subscribe", "channel": "phase_updates", "after": self.last})
            )
            self.present_since = time.time()
            for _ in range(patience):
                self.take(await socket.recv())
                if self.done:
                    return


class OnStream(Listener):
    """A client of the server-sent events."""

    async def visit(self, patience: int) -> None:
        """Listen for some messages."""
        import httpx2

        headers = {"authorization": f"Bearer {self.server.key}", "last-event-id": str(self.last)}
        async with (
            httpx2.AsyncClient(
                base_url=self.server.url, timeout=30, trust_env=False, verify=_no_certificates()
            ) as client,
            client.stream("GET", "/v1/events", headers=headers) as answer,
        ):
            self.present_since = time.time()
            async for line in answer.aiter_lines():
                if line.startswith("data: "):
                    self.take(line.removeprefix("data: "))
                    patience -= 1
                if self.done or not patience:
                    return


@lru_cache
def _no_certificates() -> ssl.SSLContext:
    """Return one context for all visits: reading the certificates anew takes each of them 26 ms."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


async def follow(
    state: Path, clients: int, steps: int, kills: int
) -> tuple[list[Listener], list[Server]]:
    """Run the job, the clients and the kills; return the clients and the servers."""
    port = free_port()
    server = start(state, port)
    servers = [server]
    generator = random.Random(0)
    config = {"train": {"steps": steps}, "gate": {"samples": 50}}
    server.call("/phases/start", {"phase_name": "bitnet", "config": config})
    listeners: list[Listener] = [
        (OnSocket if number % 2 else OnStream)(server, random.Random(number))
        for number in range(clients)
    ]
    tasks = [asyncio.create_task(one.listen()) for one in listeners]
    for _ in range(kills):
        await asyncio.sleep(steps * 0.05 / (kills + 1) * (0.5 + generator.random()))
        server.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(server.process.wait)
        server = await asyncio.to_thread(start, state, port)
        servers.append(server)
    async with asyncio.timeout(LIMIT_SECONDS):
        await asyncio.gather(*tasks)
    server.process.terminate()
    await asyncio.to_thread(server.process.wait, 60)
    return listeners, servers


def run(arguments: Sequence[str]) -> Result:
    """Let clients follow a job; count what was lost or repeated."""
    parser = argparse.ArgumentParser(prog="serve_clients")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--steps", type=int, default=600, help="events of the job, 20 per second")
    parser.add_argument("--kills", type=int, default=2)
    chosen: Any = parser.parse_args(arguments)
    waited = pressure()
    with tempfile.TemporaryDirectory(prefix="clients-") as place:
        listeners, servers = asyncio.run(
            follow(Path(place) / "state", chosen.clients, chosen.steps, chosen.kills)
        )
    last = max(one.last for one in listeners)
    wrong = sum(one.numbers != list(range(1, last + 1)) for one in listeners)
    visits = sum(one.visits for one in listeners)
    messages = sum(len(one.numbers) for one in listeners)
    count = f"{len(listeners)} clients, {visits:,} visits, {messages:,} messages, {last:,} events"
    delays = [delay for one in listeners for delay in one.delays]
    slowest, p99 = max(delays), percentile(delays, 0.99)
    in_time = slowest < LIVE_SECONDS if waited <= BUSY else None
    print(f"clients with a gap or a repetition: {wrong}; {count}; {len(servers) - 1} kills; "
          f"{len(delays):,} messages live, p99 {p99:.2f} s, slowest {slowest:.2f} s")  # fmt: skip
    figures = [
        Figure(claim="clients whose sequence is not whole", figure=float(wrong), unit="clients",
               n=count, bar="0", met=wrong == 0, key="broken_sequences"),
        Figure(claim="slowest message to a client that was there to hear it", figure=slowest,
               unit="s", n=f"{len(delays):,} messages, p99 {p99:.2f} s",
               bar=f"< {LIVE_SECONDS:g} s", met=in_time, key="live_delay"),
    ]  # fmt: skip
    return Result(
        claim=CLAIM, bar=BAR, **bars_met(figures), topic="Service",
        **here("serve_clients", arguments), figures=figures,
        note=f"The server was killed {len(servers) - 1} times and started again. Processors were "
        f"waited for {waited:g}% of the time before it; above {BUSY:g}% delays are not judged.",
    )  # fmt: skip
