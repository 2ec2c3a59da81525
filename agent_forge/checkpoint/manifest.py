"""forge.json: what a checkpoint says of itself, read, written and checked against its files.

It names the phase, config, seed, parents, metrics, deployable bytes, and the size and SHA-256 of
every other file.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

from agent_forge.checkpoint import atomic
from agent_forge.core.errors import CheckpointError

MANIFEST = "forge.json"
FORMAT_VERSION = 1
ENCRYPTION = "encryption"  # the entry of `extra` in an encrypted checkpoint


@dataclass(slots=True, kw_only=True)
class Manifest:
    """The content of forge.json."""

    format_version: int
    id: str
    phase: str
    name: str
    role: str  # "trunk", "specialist", "model", ...
    seed: int
    config: dict[str, Any]
    parents: list[dict[str, str]]  # {"path", "id", "phase", "name"}
    files: dict[str, dict[str, Any]]  # relative path -> {"sha256", "bytes"}
    metrics: dict[str, Any]
    deployable_bytes: int
    # run-time settings of the agent: tools, persona, scaffold, decoder, memory policy
    agent: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    host: str = ""
    time: float = 0.0
    sha256: str = ""  # hash of all fields above; "" in a manifest that was written without it

    @property
    def encryption(self) -> dict[str, Any] | None:
        """Return {"format", "recipients", "files"} of an encrypted checkpoint, None for a plain one.

        files: size and SHA-256 of the files as they are stored; those in `files` hold in plain.
        """
        entry = self.extra.get(ENCRYPTION)
        return entry if isinstance(entry, dict) else None

    @property
    def stored_files(self) -> dict[str, dict[str, Any]]:
        """Return size and SHA-256 of the files that lie in the directory."""
        return self.encryption["files"] if self.encryption else self.files

    @property
    def file_bytes(self) -> int:
        """Return the bytes of the weight files as they are; `deployable_bytes` counts the packed
        form.
        """
        return weight_bytes(self.files)


def weight_bytes(files: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the bytes of all weight files in a manifest."""
    return sum(entry["bytes"] for path, entry in files.items() if path.endswith(".safetensors"))


def content_id(files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the id of a set of files: a hash of their names and hashes."""
    text = "\n".join(f"{path} {files[path]['sha256']}" for path in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def manifest_hash(manifest: Manifest) -> str:
    """Return the SHA-256 of a manifest's fields, its own hash left out."""
    content = {
        key: value
        for key, value in json.loads(json.dumps(asdict(manifest))).items()
        if key != "sha256"
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write forge.json with the hash of its own fields."""
    manifest.sha256 = manifest_hash(manifest)
    (directory / MANIFEST).write_text(
        json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8"
    )


def read_manifest(path: Path) -> Manifest:
    """Return the manifest of a checkpoint directory. Raises CheckpointError."""
    file = path / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        manifest = Manifest(**content)
        _check_kinds(manifest)
    except FileNotFoundError:
        hint = (
            "; run `forge import` on a plain Hugging Face directory"
            if (path / "config.json").exists()
            else ""
        )
        raise CheckpointError(f"{path} is not a checkpoint: {MANIFEST} is missing{hint}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); restore the directory from a copy"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    if manifest.format_version > FORMAT_VERSION:
        raise CheckpointError(
            f"{file} has format version {manifest.format_version}, this forge reads up to "
            f"{FORMAT_VERSION}; upgrade"
        )
    return manifest


def _check_kinds(manifest: Manifest) -> None:
    """Raise ValueError where an entry of the manifest has another kind of value than it should."""
    for entry in fields(manifest):
        value = getattr(manifest, entry.name)
        kind: Any = get_origin(entry.type) or entry.type
        kinds = (int, float) if kind is float else (kind,)
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise ValueError(f"'{entry.name}' is not of kind {kind.__name__}")
    if manifest.encryption and not {"format", "recipients", "files"} <= manifest.encryption.keys():
        raise ValueError("'encryption' has no format, recipients and files")
    for name, file in [*manifest.files.items(), *manifest.stored_files.items()]:
        _check_file(name, file)
    for parent in manifest.parents:
        if not isinstance(parent, dict) or not {"path", "id", "phase", "name"} <= parent.keys():
            raise ValueError("'parents' holds an entry without path, id, phase and name")


def _check_file(name: str, entry: Any) -> None:
    """Raise ValueError where a file lies outside of the directory or has no size and hash."""
    is_whole = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    if not is_whole or not isinstance(entry.get("bytes"), int):
        raise ValueError(f"'files' has no size and SHA-256 of {name}")
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"'files' names {name}, which lies outside of the directory")


def verify_file(directory: Path, relative: str, entry: Mapping[str, Any]) -> None:
    """Check the size and hash of one file. Raises CheckpointError that names it."""
    file = directory / relative
    if not file.is_file():
        raise CheckpointError(
            f"{file} is missing from the checkpoint; restore it or run its phase again"
        )
    size = file.stat().st_size
    if size != entry.get("bytes"):
        raise CheckpointError(
            f"{file} is damaged: {size:,} bytes, the manifest says {entry.get('bytes')}"
        )
    if atomic.sha256_file(file) != entry.get("sha256"):
        raise CheckpointError(
            f"{file} is damaged: its SHA-256 differs from the manifest's; restore it from a copy"
        )
