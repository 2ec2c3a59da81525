"""Writes that a reader sees whole or not at all.

A write fills a temporary neighbour, flushes it to the disk, renames it, and flushes the folder.
"""

import contextlib
import ctypes
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent_forge.core.errors import StorageError

TEMPORARY = ".tmp-"
OLD = f"{TEMPORARY}old-"
# The settings that say where to write, for messages.
WHERE = "out= of a phase, run_dir= of run-all, --out of other commands"


def sha256_file(path: Path) -> str:
    """Return the hex SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync_path(path: Path) -> None:
    """Flush a file or directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace `path` by `content` atomically and durably.

    mode: the permissions of the new file, less the umask; 0o600 for secrets.
    Raises StorageError when the disk is full.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):  # a read-only place refuses even this
            temporary.unlink()
        raise storage_error(error, path, len(content)) from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=False) + "\n").encode())


def write_directory(target: Path, fill: Callable[[Path], None], *, replace: bool = True) -> None:
    """Let `fill` write into a temporary neighbour of `target`, then make it `target` in one rename.

    Every file is fsynced before the rename. An existing `target` changes places with the new
    directory in one system call where the kernel can (Linux); elsewhere it is moved aside first,
    and `remove_leftovers` puts it back after a kill.
    Raises StorageError when the disk is full or the place cannot be written.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}-{secrets.token_hex(4)}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        fill(temporary)
        for path in sorted(temporary.rglob("*")):
            fsync_path(path)
        fsync_path(temporary)
        if target.exists():
            if not replace:
                raise StorageError(f"{target} already exists; name another directory or remove it")
            _replace_directory(temporary, target)
        else:
            temporary.rename(target)
        fsync_path(target.parent)
    except OSError as error:
        needed = (
            sum(p.stat().st_size for p in temporary.rglob("*") if p.is_file())
            if temporary.exists()
            else 0
        )
        shutil.rmtree(temporary, ignore_errors=True)
        raise storage_error(error, target, needed) from error
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if "No space left" in str(error) or "File too large" in str(error):
            raise storage_error(OSError(errno.ENOSPC, str(error)), target, 0) from error
        raise


def _replace_directory(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; on Linux a reader always finds one or the other."""
    if _exchange(new, target):
        fsync_path(target.parent)
        shutil.rmtree(new)
        return
    old = target.with_name(f"{OLD}{target.name}")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    new.rename(target)
    shutil.rmtree(old)


def _exchange(one: Path, two: Path) -> bool:
    """Swap two directory entries in one step; return whether the kernel could.

    Linux can, by renameat2 with RENAME_EXCHANGE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(
        libc.renameat2(at_fdcwd, os.fsencode(one), at_fdcwd, os.fsencode(two), rename_exchange) == 0
    )


def remove_leftovers(parent: Path, name: str = "") -> None:
    """Clear up after killed writers: put back directories moved aside, delete temporary files.

    name: clear up after the writers of `parent/name` only. Without a name nobody else may write in
    `parent` meanwhile.
    """
    if not parent.is_dir():
        return
    for path in parent.glob(f"{OLD}{glob.escape(name)}" if name else f"{OLD}*"):
        target = parent / path.name.removeprefix(OLD)
        if not target.exists():
            path.rename(target)
    mine = re.compile(
        rf"{re.escape(TEMPORARY)}(old-{re.escape(name)}|{re.escape(name)}-[0-9a-f]{{8}})"
    )
    for path in parent.glob(f"{TEMPORARY}*"):
        if name and not mine.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raise StorageError where `path` or its temporary neighbour cannot exist.

    The name may be too long, or links on the way may lead round in a circle.
    """
    for place in (path, path.parent / f"{TEMPORARY}{path.name}-{'0' * 8}"):
        try:
            os.stat(place)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            raise storage_error(error, path, 0) from None


def storage_error(error: OSError, path: Path, needed_bytes: int) -> StorageError:
    """Turn an OSError of a write into one line with the remedy."""
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
        place = next((p for p in (path, *path.parents) if p.exists()), Path("/"))
        free = shutil.disk_usage(place).free
        need = (
            f"needs at least {needed_bytes:,} bytes more than were written, "
            if needed_bytes
            else ""
        )
        return StorageError(
            f"disk full while writing {path}: {need}free {free:,} bytes; free some space or write "
            "to another disk "
            f"({WHERE}), then run the same command again"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StorageError(
            f"cannot write {path}: {error.strerror}; name a directory that you may write ({WHERE})"
        )
    return StorageError(f"cannot write {path}: {error.strerror or error}")
