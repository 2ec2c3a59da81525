"""Keep every evaluation of a search: an append-only JSON-lines file, one fsynced line each.

A killed process leaves at most one torn last line, which is cut off when the file is opened again.
"""

import json
import os
import zlib
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import atomic
from agent_forge.core.errors import CheckpointError


class Journal:
    """Measurements by (candidate, slice of items). Without a path it lives in memory only."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._values: dict[tuple[str, int, int], list[float]] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                self._read(path)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, start: int, stop: int) -> list[float] | None:
        """Return what candidate `key` scored on items [start, stop), or None when it was not
        measured yet.
        """
        return self._values.get((key, start, stop))

    def put(self, key: str, start: int, stop: int, values: list[float]) -> None:
        """Record a measurement; it is on the disk when this returns.

        Raises StorageError when it cannot be.
        """
        self._values[(key, start, stop)] = values
        if self.path is None:
            return
        entry = {"key": key, "start": start, "stop": stop, "values": values}
        line = json.dumps({**entry, "crc": _checksum(entry)}) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise atomic.storage_error(error, self.path, len(line)) from error

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with path.open("rb+") as file:
                file.truncate(whole)
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                if entry.pop("crc") != _checksum(entry):
                    raise ValueError("checksum")
                self._values[(entry["key"], entry["start"], entry["stop"])] = entry["values"]
            except (ValueError, KeyError, TypeError):
                raise CheckpointError(
                    f"{path}, line {number} is damaged; remove the file to search anew"
                ) from None


def _checksum(entry: dict[str, Any]) -> int:
    """Return the CRC-32 of an entry, so that a flipped digit is not taken for a measurement."""
    return zlib.crc32(json.dumps(entry, sort_keys=True).encode())
