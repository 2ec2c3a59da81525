"""The checkpoint directory: a Hugging Face model folder plus forge.json, verified on read.

forge.json names the phase, config, seed, parents, metrics, deployable bytes, and the size and
SHA-256 of every other file; all is written atomically. The id is a hash of those file hashes: the
same weights, config and tokenizer have the same id wherever and whenever they were written.
"""

import math
import platform
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import atomic
from agent_forge.checkpoint.lending import readable
from agent_forge.checkpoint.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    content_id,
    manifest_hash,
    read_manifest,
    verify_file,
    weight_bytes,
    write_manifest,
)
from agent_forge.core.errors import CheckpointError, ConfigError, PhaseError, did_you_mean

IMPORTED = (".gguf", ".bin", ".whl")  # kinds of files that `forge import` reads


@dataclass(slots=True, frozen=True)
class Checkpoint:
    """An opened checkpoint directory. stored: where it lies, for messages and lineage."""

    stored: Path
    manifest: Manifest

    @property
    def path(self) -> Path:
        """Return the directory whose files can be read: `stored`, or a private plain copy of it.

        Raises ConfigError where the checkpoint is encrypted and its key is not within reach,
        CheckpointError where it is damaged.
        """
        return readable(self.stored) if self.manifest.encryption else self.stored

    @property
    def id(self) -> str:
        """Return the content hash (16 hex digits)."""
        return self.manifest.id

    @property
    def name(self) -> str:
        """Return the checkpoint's name, or its phase when it has none."""
        return self.manifest.name or self.manifest.phase

    @property
    def metrics(self) -> dict[str, Any]:
        """Return the metrics that the phase recorded."""
        return self.manifest.metrics


def write(
    target: Path,
    save: Callable[[Path], None],
    *,
    phase: str,
    seed: int,
    config: Mapping[str, Any],
    parents: Sequence[Checkpoint | Mapping[str, str]] = (),
    name: str = "",
    role: str = "model",
    metrics: Mapping[str, Any] | None = None,
    agent: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    deployable_bytes: int | None = None,
    hashes: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Write a checkpoint: `save(directory)` fills a temporary directory, which is renamed at the
    end.

    The manifest is written last. deployable_bytes: by default the bytes of all weight files.
    parents: checkpoints, or entries as the manifest has them. hashes: SHA-256 of files, by name,
    that `save` knows from writing them; other files are read again.
    Raises StorageError on a full or read-only disk; `target` then still holds what it held before.
    Raises PhaseError when a metric is not a finite number: JSON has no word for it, and no gate can
    read it.
    """
    _require_finite(metrics or {}, phase)
    manifest: Manifest | None = None

    def fill(directory: Path) -> None:
        nonlocal manifest
        save(directory)
        files = _listed(directory, hashes or {})
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            id=content_id(files),
            phase=phase,
            name=name,
            role=role,
            seed=seed,
            config=dict(config),
            parents=[_parent(parent) for parent in parents],
            files=files,
            metrics=dict(metrics or {}),
            deployable_bytes=weight_bytes(files) if deployable_bytes is None else deployable_bytes,
            agent=dict(agent or {}),
            extra=dict(extra or {}),
            versions=_versions(),
            host=socket.gethostname(),
            time=time.time(),
        )
        manifest.sha256 = manifest_hash(manifest)
        write_manifest(directory, manifest)

    atomic.write_directory(target, fill)
    assert manifest is not None
    return Checkpoint(target, manifest)


def _listed(directory: Path, hashes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file below `directory`; files without a hash are read."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(directory))
            digest = hashes.get(name) or atomic.sha256_file(path)
            files[name] = {"sha256": digest, "bytes": path.stat().st_size}
    return files


def _require_finite(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            _require_finite(entry, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for entry in value:
            _require_finite(entry, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise PhaseError(
            f"metric {where} is {value}, not a finite number; measure it on more items"
        )


def _parent(parent: Checkpoint | Mapping[str, str]) -> dict[str, str]:
    if isinstance(parent, Checkpoint):
        return {
            "path": str(parent.stored),
            "id": parent.id,
            "phase": parent.manifest.phase,
            "name": parent.name,
        }
    return dict(parent)


def open(path: Path | str, *, verify: bool = True) -> Checkpoint:
    """Open a checkpoint directory; check the sizes and hashes of its files, the manifest included.

    An encrypted one is checked as it is stored, without a key.
    Raises CheckpointError that names the directory and the first broken or missing file.
    """
    path = Path(path)
    if path.is_file():
        hint = "; run `forge import` on it first" if path.suffix in IMPORTED else ""
        raise CheckpointError(f"{path} is a file, and a checkpoint is a directory{hint}")
    if not path.is_dir():
        siblings = (
            [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        )
        raise CheckpointError(f"no checkpoint at {path}{did_you_mean(path.name, siblings)}")
    manifest = read_manifest(path)
    if verify:
        if manifest.sha256 and manifest.sha256 != manifest_hash(manifest):
            raise CheckpointError(
                f"{path / MANIFEST} is damaged: it does not have its recorded hash; restore it"
            )
        for relative, entry in manifest.stored_files.items():
            verify_file(path, relative, entry)
        if content_id(manifest.files) != manifest.id:
            raise CheckpointError(
                f"{path / MANIFEST} is damaged: its id does not fit its file hashes; restore it"
            )
    return Checkpoint(path, manifest)


def refuse_to_replace(target: Path, replaceable: Callable[[Manifest], bool]) -> None:
    """Raise ConfigError where something lies at `target` that would be lost under a new checkpoint.

    An empty directory is free, and so is a checkpoint whose manifest is `replaceable`.
    """
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file; name a directory")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / MANIFEST).is_file():
        raise ConfigError(
            f"{target} holds files that are no checkpoint, and they would be lost; name a new or an "
            "empty directory"
        )
    manifest = read_manifest(target)
    if not replaceable(manifest):
        raise ConfigError(
            f"{target} holds another checkpoint ({manifest.phase}, id {manifest.id[:10]}), which "
            "would be lost; name another directory, or remove it first"
        )


def expand(paths: Sequence[str | Path], *, verify: bool = True) -> list[Checkpoint]:
    """Open checkpoints.

    A directory without a manifest stands for the checkpoints in it, trunk first.

    Raises CheckpointError when a path holds no checkpoint.
    """
    checkpoints: list[Checkpoint] = []
    for path in map(Path, paths):
        if (path / MANIFEST).exists() or not path.is_dir():
            checkpoints.append(open(path, verify=verify))
            continue
        children = [
            open(child, verify=verify)
            for child in sorted(path.iterdir())
            if (child / MANIFEST).exists() and not child.name.startswith(".")
        ]
        if not children:
            hint = (
                "; it looks like a plain Hugging Face directory: run `forge import` on it first"
                if (path / "config.json").exists()
                else ""
            )
            raise CheckpointError(
                f"{path} is not a checkpoint and holds none ({MANIFEST} is missing){hint}"
            )
        checkpoints += sorted(children, key=lambda c: (c.manifest.role != "trunk", c.stored.name))
    return checkpoints


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in ("agent-forge", "torch", "transformers", "safetensors", "tokenizers", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
