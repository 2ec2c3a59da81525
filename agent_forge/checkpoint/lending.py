"""Lend an encrypted checkpoint to code that reads files, without plaintext on any disk.

Reads an encrypted checkpoint directory; makes a private folder of links to nameless files in memory
(memfd), which vanish with this process even when it is killed. That is simpler than teaching every
reader to decrypt, and unlike a temporary folder it leaves nothing behind. Where the system has no
such files, a private temporary folder (0700) is used instead and removed at exit.
"""

import atexit
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_forge.checkpoint import age
from agent_forge.checkpoint.manifest import (
    ENCRYPTION,
    MANIFEST,
    Manifest,
    read_manifest,
    verify_file,
    write_manifest,
)
from agent_forge.core.errors import ConfigError

_lent: dict[tuple[str, str], Path] = {}
_lending = threading.Lock()


def readable(path: Path) -> Path:
    """Return `path` itself, or for an encrypted checkpoint a private folder that holds it in plain.

    The folder lives as long as this process, and is made once per checkpoint.
    Raises ConfigError without a key, and CheckpointError for damaged files or other keys.
    """
    if not (path / MANIFEST).is_file() or not any(path.glob(f"*{age.SUFFIX}")):
        return path
    manifest = read_manifest(path)
    if manifest.encryption is None:
        return path
    known = (str(path.resolve()), manifest.sha256)
    with _lending:  # a chat opens the model and the tokenizer in two threads
        if known not in _lent:
            try:
                keys = age.identities()
            except ConfigError as error:
                raise ConfigError(f"{path} is encrypted: {error}") from None
            _lent[known] = _lend(path, manifest, keys)
        return _lent[known]


def _lend(path: Path, manifest: Manifest, keys: Sequence[Any]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="agent-forge-"))  # mode 0700
    atexit.register(_remove, folder, os.getpid())
    in_memory = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
    for name, entry in manifest.files.items():
        source, target = path / f"{name}{age.SUFFIX}", folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if in_memory:
            descriptor = os.memfd_create(target.name)
            with os.fdopen(os.dup(descriptor), "wb") as out:
                age.decrypt_into(source, out, keys)
            # By this process's number, so that its children read it too.
            target.symlink_to(f"/proc/{os.getpid()}/fd/{descriptor}")
        else:
            age.decrypt_file(source, target, keys)
        verify_file(folder, name, entry)
    extra = {key: value for key, value in manifest.extra.items() if key != ENCRYPTION}
    write_manifest(folder, replace(manifest, extra=extra))
    return folder


def _remove(folder: Path, pid: int) -> None:
    """Remove a lent folder at the end of the process that made it, not of a fork of it."""
    if os.getpid() == pid:
        shutil.rmtree(folder, ignore_errors=True)
