"""Which models a client may name: ids and names on one side, directories on the other.

`RegisteredModels` are the checkpoints of the server's registry that are whole, by id or by name;
`NamedDirectories` are some without a database.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent_forge import checkpoint
from agent_forge.core.errors import CheckpointError, did_you_mean
from agent_forge.server.checkpoints import OK, Entry, Registry

AGENT = ":agent"  # behind a model's name: its own tools run here


class ServedModel(Protocol):
    """One model of a list. time: of its writing, seconds since the epoch."""

    @property
    def id(self) -> str:
        """Return the name that clients use."""

    @property
    def time(self) -> float:
        """Return when it was written."""


class ServedModels(Protocol):
    """The models that there are now."""

    def list(self) -> Sequence[ServedModel]:
        """Return them all."""

    def path_of(self, checkpoint_id: str) -> Path:
        """Return the directory of one. Raises CheckpointError for an id that is not known."""


@dataclass(frozen=True, slots=True)
class NamedDirectory:
    """A model with a name of its own."""

    id: str
    time: float


class NamedDirectories:
    """Checkpoint directories by name; each manifest is read when it is asked for."""

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self.directories = dict(directories)

    def list(self) -> list[NamedDirectory]:
        """Return the models by name."""
        return [
            NamedDirectory(name, checkpoint.open(path, verify=False).manifest.time)
            for name, path in sorted(self.directories.items())
        ]

    def path_of(self, checkpoint_id: str) -> Path:
        """Return the directory of a name. Raises CheckpointError for a name that is not known."""
        path = self.directories.get(checkpoint_id)
        if path is None:
            hint = did_you_mean(checkpoint_id, self.directories)
            raise CheckpointError(f"no model '{checkpoint_id}'{hint}")
        return path


class RegisteredModels:
    """The whole checkpoints of a registry. A name stands for the newest checkpoint that has it."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def list(self) -> list[Entry]:
        """Return the models, oldest first."""
        return [entry for entry in self.registry.list() if entry.status == OK]

    def path_of(self, checkpoint_id: str) -> Path:
        """Return the directory of an id or a name. Raises CheckpointError for another one."""
        entries = self.list()
        by_name = {entry.name: entry.id for entry in entries}  # the newest comes last
        known = {**by_name, **{entry.id: entry.id for entry in entries}}
        if checkpoint_id not in known:
            raise CheckpointError(f"no model '{checkpoint_id}'{did_you_mean(checkpoint_id, known)}")
        return self.registry.path_of(known[checkpoint_id])
