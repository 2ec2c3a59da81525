"""One model's process, seen from the server: start it, ask it, cancel, and know why it ended.

The process has a session of its own, none of the server's sockets, and an environment of names that
are listed here: keys that the server holds never reach it. It ends with its standard input, which
the server's end closes.
"""

import json
import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import agent_forge
from agent_forge.core.errors import ForgeError

# What a model's process may know of the server's environment.
ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "XDG_CACHE_HOME", "CC",
    "OMP_NUM_THREADS", "FORGE_KERNELS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "VIRTUAL_ENV",
)  # fmt: skip
WORKER = ("-m", "agent_forge.server.openai.worker")
LAST_LINES = 20
END_SECONDS = 5.0


class ModelError(ForgeError):
    """A model's process could not be started, or has ended."""


class NotBegunError(ModelError):
    """The process ended before it began the job, which another process may do instead."""


class ModelProcess:
    """A started process. One thread at a time may `ask`; any may `cancel` and `end`."""

    def __init__(self, path: Path, *, device: str, engine: str) -> None:
        self.path = path
        root = str(Path(agent_forge.__file__).parents[1])
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        try:
            self._child = subprocess.Popen(
                [sys.executable, *WORKER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**environment, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}, cwd="/",
                start_new_session=True, text=True, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            raise ModelError(f"no process for the model could be started: {error}") from None
        self._lines: deque[str] = deque(maxlen=LAST_LINES)
        self._writing = threading.Lock()
        self._reader = threading.Thread(target=self._keep_errors, daemon=True)
        self._reader.start()
        self._options = {"path": str(path.resolve()), "device": device, "engine": engine}

    def start(self) -> None:
        """Let it open the model. Raises ModelError with its reason where it cannot."""
        self._send(self._options)
        first = next(self._messages())
        if first["event"] == "failed":
            raise ModelError(first["message"])

    def ask(self, number: int, job: Mapping[str, Any], tell: Callable[[Any], None]) -> None:
        """Have a job answered; `tell` gets its records.

        Raises ModelError when the process ends, NotBegunError where it had not begun the job.
        """
        messages = self._messages()
        try:
            self._send({"ask": number, **job})
            while next(messages) != {"ask": number, "event": "begun"}:
                pass
        except ModelError as error:
            raise NotBegunError(str(error)) from None
        for message in messages:
            if message.pop("ask") == number:
                tell(message)
                if message["event"] in ("done", "error"):
                    return

    def cancel(self, number: int) -> None:
        """End a job before its next token."""
        with suppress(ModelError):  # whoever reads its events hears of its end
            self._send({"cancel": number})

    def end(self) -> None:
        """End the process, and wait until it is gone."""
        with self._writing:
            if self._child.stdin is not None and not self._child.stdin.closed:
                with suppress(OSError):  # it has ended by itself
                    self._child.stdin.close()
        try:
            self._child.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def release(self) -> None:
        """End the process and close its pipes; for the thread that asks it."""
        self.end()
        self._reader.join(END_SECONDS)
        for pipe in (self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """Return the process's number."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Return whether it runs."""
        return self._child.poll() is None

    @property
    def memory_bytes(self) -> int:
        """Return what it holds in memory, mapped files included; 0 when it is gone."""
        try:
            return int(psutil.Process(self._child.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._child.stdin is not None
        try:
            with self._writing:
                self._child.stdin.write(json.dumps(message) + "\n")
                self._child.stdin.flush()
        except (OSError, ValueError):  # ValueError: the file was closed by `end`
            raise self._gone() from None

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Yield what it says. Raises ModelError at the end of its output."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            yield json.loads(line)
        raise self._gone()

    def _gone(self) -> ModelError:
        """Return why the process ended, from its exit code and its last words."""
        code = self._child.wait()
        self._reader.join(END_SECONDS)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        last = f": {self._lines[-1]}" if self._lines else ""
        return ModelError(f"the model's process {how}{last}")

    def _keep_errors(self) -> None:
        assert self._child.stderr is not None
        for line in self._child.stderr:
            if line.strip():
                self._lines.append(line.strip())
