"""Encrypted checkpoints: every file but forge.json is in the age format, beside a readable manifest.

Reads and writes checkpoint directories. The manifest stays readable, so that lists, lineage and
integrity need no key; it names the recipients, and the size and SHA-256 of each encrypted file. The
id is still a hash of the content. `lending.py` opens encrypted checkpoints for readers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import age, atomic, directory
from agent_forge.checkpoint.directory import Checkpoint
from agent_forge.checkpoint.manifest import ENCRYPTION, Manifest, verify_file, write_manifest
from agent_forge.core.errors import CheckpointError

FORMAT = "age-encryption.org/v1"


def encrypt(source: Path, target: Path, recipients: Sequence[str] = ()) -> Checkpoint:
    """Write the checkpoint at `source` encrypted to `target`; both may be the same directory.

    recipients: public keys (age1…); without any, the key within reach. The original files are
    deleted where `target` is `source`, not overwritten: a disk may keep their blocks.
    Raises CheckpointError where `source` is damaged or encrypted already, ConfigError without keys.
    """
    opened = directory.open(source)
    check_target(target, opened)
    if opened.manifest.encryption:
        raise CheckpointError(f"{source} is encrypted already; --rotate gives it other keys")
    keys = age.recipients(recipients)

    def fill(folder: Path) -> None:
        for name in opened.manifest.files:
            age.encrypt_file(source / name, _made(folder / f"{name}{age.SUFFIX}"), keys)
        _write_manifest(folder, opened.manifest, keys)

    return _written(target, fill)


def rotate(source: Path, target: Path, recipients: Sequence[str] = ()) -> Checkpoint:
    """Encrypt an encrypted checkpoint for other recipients; needs one of its present keys."""
    opened = _opened_encrypted(source)
    check_target(target, opened)
    old, keys = age.identities(), age.recipients(recipients)

    def fill(folder: Path) -> None:
        for name in opened.manifest.files:
            file = f"{name}{age.SUFFIX}"
            age.transcrypt(source / file, _made(folder / file), old, keys)
        _write_manifest(folder, opened.manifest, keys)

    return _written(target, fill)


def decrypt(source: Path, target: Path) -> Checkpoint:
    """Write an encrypted checkpoint in plain to `target`; both may be the same directory.

    Raises CheckpointError where a file is damaged, cut, for other keys, or not the one that the
    manifest names; `target` then holds what it held before.
    """
    opened = _opened_encrypted(source)
    check_target(target, opened)
    keys = age.identities()

    def fill(folder: Path) -> None:
        for name, entry in opened.manifest.files.items():
            plain = _made(folder / name)
            age.decrypt_file(source / f"{name}{age.SUFFIX}", plain, keys)
            verify_file(folder, name, entry)
        extra = {key: value for key, value in opened.manifest.extra.items() if key != ENCRYPTION}
        write_manifest(folder, replace(opened.manifest, extra=extra))

    return _written(target, fill)


def _opened_encrypted(source: Path) -> Checkpoint:
    opened = directory.open(source)
    if not opened.manifest.encryption:
        raise CheckpointError(f"{source} is not encrypted; run `forge encrypt {source}` first")
    return opened


def _made(path: Path) -> Path:
    """Return a path whose folder exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_manifest(folder: Path, manifest: Manifest, keys: Sequence[Any]) -> None:
    files: Mapping[str, Any] = {
        f"{name}{age.SUFFIX}": {
            "sha256": atomic.sha256_file(folder / f"{name}{age.SUFFIX}"),
            "bytes": (folder / f"{name}{age.SUFFIX}").stat().st_size,
        }
        for name in manifest.files
    }
    entry = {"format": FORMAT, "recipients": sorted(map(str, keys)), "files": files}
    write_manifest(folder, replace(manifest, extra={**manifest.extra, ENCRYPTION: entry}))


def check_target(target: Path, opened: Checkpoint) -> None:
    """Raise ConfigError where something else than the checkpoint itself lies at `target`."""
    directory.refuse_to_replace(target, lambda old: old.id == opened.id)


def _written(target: Path, fill: Callable[[Path], None]) -> Checkpoint:
    atomic.write_directory(target, fill)
    return directory.open(target)
