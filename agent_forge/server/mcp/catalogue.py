"""The checkpoints below some directories, by id: what a client may know of them, and nothing of paths."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from agent_forge import checkpoint
from agent_forge.checkpoint.manifest import MANIFEST
from agent_forge.core.errors import CheckpointError, did_you_mean

# Small text files of a checkpoint that a client may read.
READABLE = (
    "README.md", "config.json", "generation_config.json", "tokenizer_config.json",
    "chat_template.jinja", "report.md",
)  # fmt: skip
MAX_FILE_BYTES = 256 * 1024


class Catalogue:
    """The checkpoints below `roots`. Manifests are opened again only where they have changed."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = [Path(root) for root in roots]
        self._opened: dict[Path, tuple[tuple[int, int], checkpoint.Checkpoint]] = {}

    def all(self) -> list[checkpoint.Checkpoint]:
        """Return every checkpoint whose manifest can be read, oldest first, one per id."""
        by_id = {opened.id: opened for opened in self._walk()}
        return sorted(by_id.values(), key=lambda opened: (opened.manifest.time, opened.id))

    def get(self, name: str) -> checkpoint.Checkpoint:
        """Return a checkpoint by its id, or by a name that only one has. Raises CheckpointError."""
        known = self.all()
        fitting = [one for one in known if name in (one.id, one.name)]
        exact = [one for one in fitting if one.id == name] or fitting
        if len(exact) == 1:
            return exact[0]
        if exact:
            ids = ", ".join(one.id for one in exact)
            raise CheckpointError(f"{len(exact)} checkpoints are named '{name}'; give one of {ids}")
        hint = did_you_mean(name, [word for one in known for word in (one.id, one.name)])
        raise CheckpointError(f"no checkpoint '{name}'{hint}; checkpoints_list shows them")

    def summary(self, opened: checkpoint.Checkpoint) -> dict[str, Any]:
        """Return a line of a list."""
        manifest = opened.manifest
        return {
            "id": opened.id, "name": opened.name, "phase": manifest.phase, "role": manifest.role,
            "deployable_bytes": manifest.deployable_bytes, "file_bytes": manifest.file_bytes,
            "parents": [parent["id"] for parent in manifest.parents], "time": manifest.time,
            "encrypted": manifest.encryption is not None,
        }  # fmt: skip

    def manifest(self, opened: checkpoint.Checkpoint) -> dict[str, Any]:
        """Return what the manifest says, without host and paths."""
        manifest = opened.manifest
        parents = [{key: parent.get(key, "") for key in ("id", "phase", "name")}
                   for parent in manifest.parents]  # fmt: skip
        return {
            **self.summary(opened), "seed": manifest.seed, "parents": parents,
            "metrics": without_paths(manifest.metrics), "agent": without_paths(manifest.agent),
            "config": without_paths(manifest.config), "versions": dict(manifest.versions),
            "files": {name: dict(entry) for name, entry in manifest.files.items()},
        }  # fmt: skip

    def read(self, opened: checkpoint.Checkpoint, name: str) -> str:
        """Return one of the small text files of a checkpoint. Raises CheckpointError."""
        if opened.manifest.encryption:
            raise CheckpointError(f"{opened.name} is encrypted: its files cannot be read here")
        held = [file for file in READABLE if file in opened.manifest.files]
        if name not in held:
            raise CheckpointError(
                f"'{name[:80]}' cannot be read{did_you_mean(name, held)}; "
                f"this checkpoint has: {', '.join(held) or 'no text file'}"
            )
        path = opened.path / name
        # A link could lead out of the checkpoint, whatever its name is.
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(f"'{name}' is missing, a link, or larger than {MAX_FILE_BYTES}")
        return path.read_text(encoding="utf-8", errors="replace")

    def verify(self, opened: checkpoint.Checkpoint) -> str:
        """Return "ok", or what is damaged."""
        try:
            checkpoint.open(opened.stored, verify=True)
        except CheckpointError as error:
            return self.without_root(str(error))
        return "ok"

    def without_root(self, text: str) -> str:
        """Return a message without the directories of this machine."""
        for root in self.roots:
            for place in (str(root.resolve()), str(root)):
                text = text.replace(f"{place}{os.sep}", "").replace(place, "the models' directory")
        return text

    def _walk(self) -> Iterator[checkpoint.Checkpoint]:
        for place, folders, files in itertools.chain.from_iterable(map(os.walk, self.roots)):
            if MANIFEST not in files:
                folders[:] = [name for name in folders if not name.startswith(".")]
                continue
            folders.clear()
            directory = Path(place)
            status = (directory / MANIFEST).stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._opened.get(directory)
            if known is None or known[0] != stamp:
                try:
                    known = (stamp, checkpoint.open(directory, verify=False))
                except CheckpointError:
                    continue  # one damaged manifest must not hide the others
                self._opened[directory] = known
            yield known[1]


def without_paths(value: Any) -> Any:
    """Return plain values with every absolute or climbing path cut down to its last name."""
    if isinstance(value, Mapping):
        return {str(key): without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    if isinstance(value, str) and _is_path(value):
        return PureWindowsPath(PurePosixPath(value).name).name
    return value


def _is_path(text: str) -> bool:
    """Return whether a text is a path of a machine, not a word, a sentence or an address."""
    if "\n" in text or "://" in text or len(text) > 1024:
        return False
    return (
        PurePosixPath(text).is_absolute()
        or PureWindowsPath(text).is_absolute()
        or text.startswith("~")
        or bool({"/", "\\"} & set(text) and " " not in text)
    )
