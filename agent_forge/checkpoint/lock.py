"""One writer per directory: a lock of the kernel, which ends with its process.

The owner's pid and host are written beside it, for messages.
"""

import json
import os
import socket
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from agent_forge.checkpoint.atomic import storage_error
from agent_forge.core.errors import LockedError

LOCK_NAME = ".forge.lock"


class DirectoryLock:
    """Hold `directory` for writing.

    Raises LockedError naming pid and host of the holder, StorageError on a full disk. wait_seconds:
    how long to wait for a holder that is about to end.
    """

    def __init__(self, directory: Path, wait_seconds: float = 0.0) -> None:
        self.directory = directory
        self.wait_seconds = wait_seconds
        self._path = directory / LOCK_NAME
        self._owner = directory / f"{LOCK_NAME}.owner"
        # Whoever ends the work lets go, which in a server may be another thread.
        self._lock = FileLock(self._path, thread_local=False)

    def __enter__(self) -> "DirectoryLock":
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=self.wait_seconds)
        except Timeout:
            raise LockedError(
                f"{self.directory} is being written by {self._describe_owner()}; "
                "wait for it, stop it, or set out= to another directory"
            ) from None
        except OSError as error:
            raise storage_error(error, self.directory, 0) from error
        try:
            self._owner.write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8"
            )
        except OSError as error:
            self._lock.release()
            raise storage_error(error, self._owner, 100) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    def _describe_owner(self) -> str:
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
            return f"pid {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError):
            return "another process"
