"""Ask the composing process: one request at a time, each within a limit of time."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_forge.core import errors
from agent_forge.core.errors import ConfigError, ForgeError

SECONDS = 120.0  # estimates read every source of data and time a matrix product
LONGEST_ANSWER = 1 << 24


@dataclass(frozen=True, slots=True)
class Composed:
    """A composition. config: settings as plain values. estimates: one per phase, if asked for."""

    config: dict[str, Any]
    estimates: list[dict[str, Any]] = field(default_factory=list)


class Composer:
    """The composing process. early: it is started with the server, not when first needed."""

    def __init__(self, seconds: float = SECONDS, *, early: bool = True) -> None:
        self.seconds, self.early = seconds, early
        self._child: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def compose(
        self, phase: str, overrides: Sequence[str], *, estimate: bool = False
    ) -> Composed:
        """Return the composed settings of a phase or of run-all.

        Raises the error that the command line would show, and ForgeError when the process fails.
        """
        request = {"phase": phase, "overrides": list(overrides), "estimate": estimate}
        async with self._turn:
            try:
                answer = await asyncio.wait_for(self._ask(request), self.seconds)
            except (TimeoutError, asyncio.CancelledError):
                # Its answer would be taken for the next request's.
                self._kill()
                raise
        if "error" in answer:
            kind = getattr(errors, answer["error"], ForgeError)
            raise kind(answer["message"])
        return Composed(answer["config"], answer.get("estimates", []))

    async def start(self) -> None:
        """Start the process, so that it is warm when the first request comes."""
        if not self.early:
            return
        async with self._turn:
            await self._running()

    async def close(self) -> None:
        """End the process."""
        child = self._child
        self._kill()
        if child is not None:
            await child.wait()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "agent_forge.server.composer.child", str(os.getpid()),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                limit=LONGEST_ANSWER,
            )  # fmt: skip
        return self._child

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        child = await self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            await child.stdin.drain()
            line = await child.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            line = b""
        if not line:
            self._kill()
            raise ConfigError("the composing process ended; send the request again")
        return json.loads(line)  # type: ignore[no-any-return]

    def _kill(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.kill()
        self._child = None
