"""The service's database: SQLite with one writer, which commits in batches, and many readers.

Reads and writes one file (WAL mode, readable by its owner only). All changes run on one thread, so
there is one writer per file, as SQLite's write-ahead log wants it; a lock beside the file keeps a
second server out. A change is safe on the disk when its future has a result.

On a full disk a change fails with StorageError and leaves nothing behind; reads go on.
"""

import contextlib
import os
import queue
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from agent_forge.checkpoint import DirectoryLock, atomic
from agent_forge.core.errors import ConfigError, LockedError, StorageError
from agent_forge.server.schema import MIGRATIONS

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
BATCH = 500  # most changes of one commit
BUSY_SECONDS = 10.0  # a backup by another program may hold the file for a moment
READERS = 8  # connections that are kept open between reads
LOCK_WAIT_SECONDS = 3.0  # a killed server needs a moment to die
# Jobs are refused below this much free space, so that what runs can still be recorded.
RESERVE_BYTES = 32 << 20


class Readers:
    """Read-only connections to a database that some process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._idle: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._closed = False

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Lend a read-only connection that sees one state of the database while it is lent.

        Rows have columns by name. Raises StorageError where the file cannot be opened.
        """
        connection = self._lend()
        try:
            connection.execute("BEGIN")
            yield connection
        except sqlite3.OperationalError as error:
            raise _storage_error(error, self.path) from error
        finally:
            connection.rollback()
            if self._closed or self._idle.qsize() >= READERS:
                connection.close()
            else:
                self._idle.put(connection)

    def backup(self, target: Path) -> None:
        """Write a whole copy of the database as it is now. Raises StorageError on a full disk."""
        temporary = target.with_name(f"{atomic.TEMPORARY}{target.name}-{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _touch_private(temporary)
            # The source is read outside of a transaction: a copy takes its own.
            source = self._lend()
            with contextlib.closing(sqlite3.connect(temporary)) as copy:
                source.backup(copy)
            self._idle.put(source)
            atomic.fsync_path(temporary)
            temporary.replace(target)
            atomic.fsync_path(target.parent)
        except (OSError, sqlite3.OperationalError) as error:
            temporary.unlink(missing_ok=True)
            raise _storage_error(error, target) from error

    def close_readers(self) -> None:
        """Close the connections that are not lent; those that are close when they come back."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _lend(self) -> sqlite3.Connection:
        with contextlib.suppress(queue.Empty):
            return self._idle.get_nowait()
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS,
                check_same_thread=False, isolation_level=None,
            )  # fmt: skip
        except sqlite3.OperationalError as error:
            raise _storage_error(error, self.path) from error
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA query_only = 1")
        return connection


class Database(Readers):
    """The one writer of a database file, and readers of it.

    Creates the file where it is missing, and brings an older one up to date after a backup beside
    it. Raises LockedError when another server holds it, ConfigError for a file of a newer forge,
    StorageError when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = DirectoryLock(
            path.parent / f".{path.name}.lock.d", wait_seconds=LOCK_WAIT_SECONDS
        )
        try:
            self._lock.__enter__()
        except LockedError as error:
            raise LockedError(f"{path} belongs to a server that runs: {error}") from None
        try:
            _touch_private(path)
            self._migrate()
        except BaseException as error:
            self._lock.__exit__(None, None, None)
            if isinstance(error, OSError | sqlite3.DatabaseError):
                raise _storage_error(error, path) from error
            raise
        self._changes: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._closing = threading.Lock()
        self._writer = threading.Thread(target=self._write_batches, name="database", daemon=True)
        self._writer.start()

    def write(self, work: Work[T]) -> "Future[T]":
        """Run `work(connection)` on the writer's thread, and commit it.

        The future has the result once the change is on the disk, or the error that `work` raised;
        then nothing of it stays. Several changes share a commit, each is whole or absent by itself.
        The future raises StorageError on a full disk.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise StorageError(f"{self.path} is closed; the server is stopping")
            self._changes.put((work, future))
        return future

    def check_space(self) -> None:
        """Raise StorageError when so little space is left that a new job should not begin."""
        free = shutil.disk_usage(self.path.parent).free
        if free < RESERVE_BYTES:
            raise StorageError(
                f"{self.path.parent}: {free:,} bytes are free, a new job needs at least "
                f"{RESERVE_BYTES:,}; free some space, or delete old runs"
            )

    def close(self) -> None:
        """Commit what was handed in, and let the file go."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._changes.put(None)
        self._writer.join()
        self.close_readers()
        self._lock.__exit__(None, None, None)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded while the file is empty
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _migrate(self) -> None:
        """Bring the file to the newest schema, step by step, each step whole or absent."""
        with contextlib.closing(self._connect()) as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise ConfigError(
                    f"{self.path} has schema version {version}, this forge knows up to "
                    f"{len(MIGRATIONS)}; upgrade forge, or name another directory"
                )
            if 0 < version < len(MIGRATIONS):
                self.backup(self.path.with_name(f"{self.path.name}.version-{version}"))
            for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
                connection.executescript(
                    f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;"
                )

    def _write_batches(self) -> None:
        with contextlib.closing(self._connect()) as connection:
            is_open = True
            while is_open:
                batch = [self._changes.get()]
                with contextlib.suppress(queue.Empty):
                    while len(batch) < BATCH:
                        batch.append(self._changes.get_nowait())
                is_open = None not in batch
                self._commit(connection, [change for change in batch if change is not None])

    def _commit(
        self, connection: sqlite3.Connection, batch: list[tuple[Work[Any], "Future[Any]"]]
    ) -> None:
        """Run the changes in one transaction, and tell their futures when it is on the disk."""
        live = [change for change in batch if change[1].set_running_or_notify_cancel()]
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [(future, self._attempt(connection, work)) for work, future in live]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):  # a full disk has ended the transaction itself
                connection.execute("ROLLBACK")
            failure = _storage_error(error, self.path)
            for _, future in live:
                future.set_exception(failure)
            return
        for future, result in results:
            if isinstance(result, _Failure):
                future.set_exception(result.error)
            else:
                future.set_result(result)

    def _attempt(self, connection: sqlite3.Connection, work: Work[Any]) -> Any:
        """Return the result of a change, or its _Failure once it was undone.

        Raises sqlite3.Error when the transaction as a whole cannot go on.
        """
        connection.execute("SAVEPOINT change")
        try:
            result = work(connection)
        except BaseException as error:  # the caller gets it from the future
            if not connection.in_transaction:  # a full disk has ended it
                raise
            connection.execute("ROLLBACK TO change")
            is_storage = isinstance(error, sqlite3.OperationalError)
            result = _Failure(_storage_error(error, self.path) if is_storage else error)
        connection.execute("RELEASE change")
        return result


class _Failure:
    """The error of one change, whose neighbours are committed all the same."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _touch_private(path: Path) -> None:
    """Create a file that only its owner reads: it holds hashes of keys."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def _storage_error(error: BaseException, path: Path) -> StorageError:
    """Return what a user can do about an error of SQLite or of the disk below it."""
    if isinstance(error, OSError):
        return atomic.storage_error(error, path, 0)
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_FULL"):
        free = shutil.disk_usage(path.parent).free
        return StorageError(
            f"disk full while writing {path} (free {free:,} bytes); free some space"
        )
    return StorageError(f"{path}: {error}")
