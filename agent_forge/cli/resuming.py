"""The command that goes on with a run: noted beside the run when it begins, shown when it stopped.

Writes command.json into a record directory.
"""

import contextlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from agent_forge.core.events import Event
from agent_forge.pipeline.outcome import COMMAND


def command_line(name: str, overrides: Sequence[str], file: str | None) -> str:
    """Return the command that began a run, as it is typed; flags of one run only are left out."""
    config = ["--config", file] if file else []
    return shlex.join(["forge", name, *overrides, *config])


class NotedCommand:
    """Write a run's command at its first event, when the run holds the lock of its directory."""

    def __init__(self, record: Path, command: str) -> None:
        self.record, self.command, self.is_written = record, command, False

    def before(self, listener: Callable[[Event], None]) -> Callable[[Event], None]:
        """Return a listener that writes the command once, and passes every event on."""

        def listen(event: Event) -> None:
            if not self.is_written:
                from agent_forge.checkpoint import atomic
                from agent_forge.core.errors import StorageError

                self.is_written = True
                # A full disk ends the phase by its own rules; the note is a convenience.
                with contextlib.suppress(StorageError):
                    atomic.write_json(self.record / COMMAND, {"command": self.command})
            listener(event)

        return listen
