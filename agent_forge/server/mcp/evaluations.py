"""Evaluations: `forge eval` in a process of its own, one at a time, and what was measured so far.

Results are kept as JSON lines beside the server's state, and found again by checkpoint.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from threading import Lock
from typing import Any

from agent_forge.checkpoint import Checkpoint
from agent_forge.core import registry
from agent_forge.core.errors import ConfigError, ForgeError, did_you_mean

TASKS = "agent_forge.evaluate.tasks"
SPLITS = ("validation", "search", "test")
MAX_ITEMS = 2000
TIMEOUT_SECONDS = 3600
FILE = "evaluations.jsonl"


class Evaluations:
    """Runs evaluations and keeps their results below `state`."""

    def __init__(self, state: Path) -> None:
        self.file = state / FILE
        self._running = Lock()

    def tasks(self) -> list[str]:
        """Return the names of the tasks."""
        return registry.names(TASKS)

    def read(self, checkpoint_id: str) -> list[dict[str, Any]]:
        """Return the results of a checkpoint, oldest first."""
        if not self.file.is_file():
            return []
        lines = self.file.read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        return [row for row in rows if row["checkpoint"] == checkpoint_id]

    def run(self, opened: Checkpoint, tasks: list[str], items: int, split: str) -> dict[str, Any]:
        """Score a checkpoint and return the scores; also kept in the file.

        Raises ConfigError for an unknown task or split, and where another evaluation runs.
        """
        self._check(tasks, items, split)
        if not self._running.acquire(blocking=False):
            raise ConfigError("another evaluation is running; try again when it has ended")
        try:
            rows = self._score(opened, tasks, items, split)
        finally:
            self._running.release()
        result = {"checkpoint": opened.id, "split": split, "time": time.time(), "scores": rows}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
        return result

    def _check(self, tasks: list[str], items: int, split: str) -> None:
        known = self.tasks()
        for name in tasks:
            if name not in known:
                raise ConfigError(
                    f"no task '{name}'{did_you_mean(name, known)}; known: {', '.join(known)}"
                )
        if split not in SPLITS:
            hint = did_you_mean(split, SPLITS)
            raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got '{split}'{hint}")
        if not tasks or not 2 <= items <= MAX_ITEMS:
            raise ConfigError(f"give at least one task, and 2 to {MAX_ITEMS} items, got {items}")

    def _score(
        self, opened: Checkpoint, tasks: list[str], items: int, split: str
    ) -> list[dict[str, Any]]:
        command = [
            sys.executable, "-m", "agent_forge", "eval", str(opened.stored), "--tasks",
            ",".join(tasks), "--items", str(items), "--split", split, "--json",
        ]  # fmt: skip
        try:
            result = subprocess.run(
                command, capture_output=True, encoding="utf-8", check=False,
                timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ConfigError(f"the evaluation took more than {TIMEOUT_SECONDS} s") from None
        if result.returncode:
            lines = result.stderr.strip().splitlines()
            raise ForgeError(f"the evaluation failed: {lines[-1] if lines else 'without a word'}")
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
