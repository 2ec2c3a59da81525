"""Checkpoints by id: where each lies, in how many copies, and whether it is whole.

Reads `forge.json` of the directories below some roots, and keeps what a list needs in the database,
by (path, modification time, size), so that a scan opens only what has changed. The id is a hash of
the content: copies share it. Clients see ids; only this room turns them into paths.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint.manifest import MANIFEST
from agent_forge.core.errors import CheckpointError, did_you_mean
from agent_forge.server.database import Database

OK, DAMAGED, MISSING = "ok", "damaged", "missing"


@dataclass(slots=True, kw_only=True)
class Entry:
    """One checkpoint, however many copies there are.

    status: "ok" when at least one copy is whole, as far as its manifest and the sizes of its files
    tell; "damaged" or "missing" otherwise. deployable_bytes: of the packed form. parents: ids.
    encrypted: whether every copy is encrypted at rest. locations: directories on the server, the
    whole ones first; they are not for clients.
    """

    id: str
    name: str
    phase: str
    role: str
    status: str
    deployable_bytes: int
    file_bytes: int
    parents: list[str]
    metrics: dict[str, Any]
    seed: int
    time: float
    error: str = ""
    encrypted: bool = False
    locations: list[Path] = field(default_factory=list)

    @property
    def copies(self) -> int:
        """Return the number of places that hold it."""
        return len(self.locations)


class Registry:
    """The checkpoints below `roots`. Every call may come from any thread."""

    def __init__(self, database: Database, roots: Sequence[Path]) -> None:
        self.database = database
        self.roots = [Path(root) for root in roots]
        self._ids: dict[Path, tuple[int, int, str]] = {}

    def scan(self, below: Path | None = None) -> int:
        """Look at the roots, or below one directory, and note what is new, changed or gone.

        Returns how many checkpoints that were. Raises StorageError on a full disk.
        """
        with self.database.read() as connection:
            rows = connection.execute("SELECT path, mtime_ns, size, status FROM checkpoint")
            known = {
                row["path"]: (row["mtime_ns"], row["size"], row["status"])
                for row in rows
                if below is None or Path(row["path"]).is_relative_to(below)
            }
        changes, present = [], set()
        for directory in _checkpoints_below(self.roots if below is None else [below]):
            stamp = _stamp(directory)
            if stamp is not None:
                present.add(str(directory))
                earlier = known.get(str(directory))
                if earlier is None or earlier[:2] != stamp or earlier[2] == MISSING:
                    changes.append(_row(directory, stamp))
        gone = [path for path in known if path not in present and known[path][2] != MISSING]
        if changes or gone:
            self.database.write(lambda connection: _store(connection, changes, gone)).result()
        return len(changes) + len(gone)

    def get(self, checkpoint_id: str) -> Entry:
        """Return one checkpoint. Raises CheckpointError for an id that nobody has seen."""
        with self.database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM checkpoint WHERE id = ?", [checkpoint_id]
            ).fetchall()
            if not rows:
                ids = connection.execute("SELECT DISTINCT id FROM checkpoint").fetchall()
                near = did_you_mean(checkpoint_id, [row["id"] for row in ids])
                raise CheckpointError(f"no checkpoint '{checkpoint_id}'{near}")
        return next(iter(_entries(rows)))

    def path_of(self, checkpoint_id: str) -> Path:
        """Return a directory that holds the checkpoint now, for the server's own use.

        Raises CheckpointError when no whole copy is left.
        """
        for path in self.get(checkpoint_id).locations:
            if self.id_of(path) == checkpoint_id:
                return path
        raise CheckpointError(
            f"checkpoint {checkpoint_id} is gone: no directory holds it any more; restore a copy"
        )

    def id_of(self, path: Path) -> str | None:
        """Return the id of the checkpoint in a directory, None where it holds none."""
        stamp = _stamp(path)
        if stamp is None:
            return None
        cached = self._ids.get(path)
        if cached is None or cached[:2] != stamp:
            try:
                cached = (*stamp, checkpoint.open(path, verify=False).id)
            except CheckpointError:
                return None
            self._ids[path] = cached
        return cached[2]

    def verify(self, checkpoint_id: str) -> Entry:
        """Read every file of every copy, note which are damaged, and return the checkpoint."""
        changes = [_row(path, stamp, verify=True) for path in self.get(checkpoint_id).locations
                   if (stamp := _stamp(path)) is not None]  # fmt: skip
        self.database.write(lambda connection: _store(connection, changes, [])).result()
        return self.get(checkpoint_id)

    def list(self) -> list[Entry]:
        """Return every checkpoint that is known, oldest first."""
        with self.database.read() as connection:
            rows = connection.execute("SELECT * FROM checkpoint").fetchall()
        return sorted(_entries(rows), key=lambda entry: (entry.time, entry.id))


def _checkpoints_below(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield the directories with a manifest; links and hidden directories are passed over."""
    for root in roots:
        for place, directories, files in os.walk(root):
            if MANIFEST in files:
                directories.clear()
                yield Path(place)
            else:
                directories[:] = [name for name in directories if not name.startswith(".")]


def _stamp(directory: Path) -> tuple[int, int] | None:
    """Return (modification time, size) of a manifest; None where there is none."""
    try:
        status = (directory / MANIFEST).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_mtime_ns, status.st_size


def _row(directory: Path, stamp: tuple[int, int], *, verify: bool = False) -> list[Any]:
    """Return the row of a directory with a manifest. verify: read all its files."""
    try:
        opened = checkpoint.open(directory, verify=False)
    except CheckpointError as error:
        # A damaged manifest names no checkpoint; the place stands for it.
        place = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
        words = {"name": directory.name, "error": _without(directory, error)}
        return [str(directory), f"damaged-{place}", *stamp, DAMAGED, json.dumps(words)]
    manifest = opened.manifest
    summary: dict[str, Any] = {
        "name": opened.name, "phase": manifest.phase, "role": manifest.role,
        "deployable_bytes": manifest.deployable_bytes, "file_bytes": manifest.file_bytes,
        "parents": [parent["id"] for parent in manifest.parents], "metrics": manifest.metrics,
        "seed": manifest.seed, "time": manifest.time,
        "encrypted": manifest.encryption is not None,
    }  # fmt: skip
    summary["error"] = _damage(directory, opened, verify)
    status = DAMAGED if summary["error"] else OK
    return [str(directory), opened.id, *stamp, status, json.dumps(summary)]


def _damage(directory: Path, opened: checkpoint.Checkpoint, verify: bool) -> str:
    """Return what is wrong with a checkpoint, "" where nothing is seen."""
    if verify:
        try:
            checkpoint.open(directory)
        except CheckpointError as error:
            return _without(directory, error)
    for name, entry in opened.manifest.stored_files.items():
        if _size(directory / name) != entry.get("bytes"):
            return f"{name} is missing, or has another size than the manifest says"
    return ""


def _without(directory: Path, error: CheckpointError) -> str:
    return str(error).replace(str(directory), directory.name)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _store(
    connection: sqlite3.Connection, changes: Sequence[Sequence[Any]], gone: Sequence[str]
) -> None:
    connection.executemany("INSERT OR REPLACE INTO checkpoint VALUES (?, ?, ?, ?, ?, ?)", changes)
    connection.executemany(
        "UPDATE checkpoint SET status = ? WHERE path = ?", [(MISSING, path) for path in gone]
    )


def _entries(rows: Iterable[sqlite3.Row]) -> Iterator[Entry]:
    """Yield one entry per id, from the rows of its copies."""
    by_id: dict[str, list[sqlite3.Row]] = {}
    for row in rows:
        by_id.setdefault(row["id"], []).append(row)
    order: Mapping[str, int] = {OK: 0, DAMAGED: 1, MISSING: 2}
    for checkpoint_id, copies in by_id.items():
        copies.sort(key=lambda row: (order[row["status"]], row["path"]))
        summary = json.loads(copies[0]["summary"])
        present = [row for row in copies if row["status"] != MISSING]
        sealed = [json.loads(row["summary"]).get("encrypted", False) for row in present or copies]
        yield Entry(
            id=checkpoint_id, name=summary.get("name", ""), phase=summary.get("phase", ""),
            role=summary.get("role", ""), status=copies[0]["status"],
            deployable_bytes=summary.get("deployable_bytes", 0),
            file_bytes=summary.get("file_bytes", 0), parents=summary.get("parents", []),
            metrics=summary.get("metrics", {}), seed=summary.get("seed", 0),
            time=summary.get("time", 0.0), error=summary.get("error", ""),
            encrypted=all(sealed),
            locations=[Path(row["path"]) for row in present],
        )  # fmt: skip
