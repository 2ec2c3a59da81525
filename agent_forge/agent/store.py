"""One SQLite file (WAL) with full-text search and exact vectors, for memories and documents.

Every value is bound, never pasted into SQL; queries are quoted word by word, so no text is read as
FTS5 syntax. Ranking is FTS5's bm25 (k1 = 1.2, b = .75). A commit is on the disk when it returns
(`synchronous = FULL`). Writers of several processes take turns by a lock file: SQLite before 3.51.3
can damage a file whose log two connections reset at once.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from agent_forge.agent.embedding import DIMENSIONS, embed, fuse, words
from agent_forge.agent.ranking import TextRanking, ranks_alike
from agent_forge.agent.schema import upgrade
from agent_forge.core.errors import StorageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

TABLES = ("episodes", "facts", "passages")
MEMORY = ":memory:"
PRIVATE = 0o600
# Vectors of one table that stay in memory between queries; a larger table is read at each query.
CACHE_BYTES = 512 * 2**20
_BATCH = 4096  # rows of vectors that are read at once
_CURRENT = {"facts": "superseded_by IS NULL AND forgotten = 0", "passages": "1"}


class Store:
    """A connection to the file at `path` (":memory:" stays in this process).

    mode: the permissions of a file that is made here. read_only: refuse every write.
    Raises StorageError if it cannot open, or if a newer version wrote the file.
    """

    def __init__(
        self, path: Path | str = MEMORY, *, mode: int = PRIVATE, read_only: bool = False
    ) -> None:
        self.path = str(path)
        self._vectors: dict[str, tuple[int, NDArray[np.int64], NDArray[np.float32]]] = {}
        self._rankings: dict[str, tuple[int, TextRanking]] = {}
        self._turns: AbstractContextManager[Any] = nullcontext()
        try:
            if self.path != MEMORY and not read_only:
                _create(Path(self.path), mode)
                self._turns = FileLock(f"{self.path}.lock", mode=mode)
            self.connection = self._connect(read_only)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"cannot open {self.path}: {error}; name another file, or free some space"
            ) from error

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        address = Path(self.path).absolute().as_uri() + ("?mode=ro" if read_only else "")
        connection = sqlite3.connect(
            self.path if self.path == MEMORY else address,
            timeout=30.0, isolation_level=None, check_same_thread=False, uri=True,
        )  # fmt: skip
        if read_only:
            upgrade(connection, self.path, write=False)
            return connection
        with self._turns:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            upgrade(connection, self.path)
        return connection

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the writes inside one transaction: all of them, or none after an error.

        A nested transaction joins the outer one. Raises StorageError where the disk is full or the
        file cannot be written.
        """
        if self.connection.in_transaction:
            yield
            return
        try:
            with self._turns:
                self.connection.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self.connection.execute("COMMIT")
                except BaseException:
                    if self.connection.in_transaction:
                        self.connection.execute("ROLLBACK")
                    raise
        except sqlite3.OperationalError as error:
            raise StorageError(f"cannot write {self.path}: {error}") from error

    def insert(self, table: str, indexed: str, **columns: Any) -> int:
        """Add a row and index the text `indexed`; return its id."""
        assert table in TABLES
        names = ", ".join(columns)
        marks = ", ".join("?" * len(columns))
        with self.transaction():
            cursor = self.connection.execute(
                f"INSERT INTO {table}({names}) VALUES ({marks})", list(columns.values())
            )
            self.connection.execute(
                f"INSERT INTO {table}_text(rowid, content) VALUES (?, ?)",
                (cursor.lastrowid, indexed),
            )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def hide(self, table: str, ids: Iterable[int]) -> None:
        """Take rows out of the text index; they no longer count in any ranking.

        The rows themselves stay.
        """
        assert table in TABLES
        with self.transaction():
            self.connection.executemany(
                f"DELETE FROM {table}_text WHERE rowid = ?", [(i,) for i in ids]
            )
            self.change("UPDATE revisions SET number = number + 1 WHERE name = ?", table)

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query with bound values."""
        return self.connection.execute(sql, values).fetchall()

    def change(self, sql: str, *values: Any) -> int:
        """Run one statement with bound values in a transaction; return how many rows changed."""
        with self.transaction():
            return self.connection.execute(sql, values).rowcount

    def match(self, table: str, query: str, limit: int) -> list[tuple[int, float]]:
        """Return (id, BM25 score) of the best rows for any word of `query`, best first.

        Rows with equal scores are ordered by id.
        """
        assert table in TABLES
        sought = list(dict.fromkeys(words(query)))
        if not sought:
            return []
        if table == "passages" and ranks_alike(sought):
            with self._one_moment():
                return self._ranking(table).best(sought, limit)
        quoted = " OR ".join(f'"{word}"' for word in sought)
        sql = (
            f"SELECT rowid, -bm25({table}_text) AS score FROM {table}_text WHERE "
            f"{table}_text MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?"
        )
        return [(int(i), float(score)) for i, score in self.rows(sql, quoted, limit)]

    def nearest(self, table: str, query: str, limit: int) -> list[tuple[int, float]]:
        """Return (id, cosine) of the current rows nearest to `query`, best first, if positive.

        The search is exact; rows with equal cosines are ordered by id.
        """
        ids, vectors = self._matrix(table)
        if not len(ids) or limit < 1:
            return []
        cosines = vectors @ embed(query)
        if limit < len(ids):
            # Everything at the border's cosine stays in, so that ties are decided by id.
            border = np.partition(cosines, len(cosines) - limit)[len(cosines) - limit]
            candidates = np.flatnonzero(cosines >= border)
        else:
            candidates = np.arange(len(ids))
        order = candidates[np.argsort(-cosines[candidates], kind="stable")][:limit]
        return [(int(ids[i]), float(cosines[i])) for i in order if cosines[i] > 0.0]

    def hybrid(self, table: str, query: str, limit: int) -> list[tuple[int, float]]:
        """Return (id, fused score): BM25 and vectors merged by reciprocal rank."""
        depth = max(20, 2 * limit)
        texts = [i for i, _ in self.match(table, query, depth)]
        vectors = [i for i, _ in self.nearest(table, query, depth)]
        return fuse([texts, vectors])[:limit]

    def _matrix(self, table: str) -> tuple["NDArray[np.int64]", "NDArray[np.float32]"]:
        """Return the ids (n,) and unit vectors (n, DIMENSIONS) of a table's current rows, by id.

        They are read again only after a change, by whatever process: the file counts changes.
        """
        assert table in _CURRENT
        with self._one_moment():
            revision = self._revision(table)
            cached = self._vectors.get(table)
            if cached is not None and cached[0] == revision:
                return cached[1], cached[2]
            ids, vectors = self._read_vectors(table)
        self._vectors.pop(table, None)
        if vectors.nbytes <= CACHE_BYTES:
            self._vectors[table] = (revision, ids, vectors)
        return ids, vectors

    def _ranking(self, table: str) -> TextRanking:
        """Return the text ranking of a table, made again after a change."""
        revision = self._revision(table)
        cached = self._rankings.get(table)
        if cached is None or cached[0] != revision:
            cached = revision, TextRanking(self.connection, f"{table}_text")
            self._rankings[table] = cached
        return cached[1]

    def _revision(self, table: str) -> int:
        """Return the number of changes of a table, by whatever process."""
        ((number,),) = self.rows("SELECT number FROM revisions WHERE name = ?", table)
        return int(number)

    @contextmanager
    def _one_moment(self) -> Iterator[None]:
        """Read everything inside from one state of the file."""
        self.connection.execute("SAVEPOINT moment")
        try:
            yield
        finally:
            self.connection.execute("RELEASE moment")

    def _read_vectors(self, table: str) -> tuple["NDArray[np.int64]", "NDArray[np.float32]"]:
        where = f"FROM {table} WHERE {_CURRENT[table]}"
        ((count,),) = self.rows(f"SELECT COUNT(*) {where}")
        ids = np.empty(count, np.int64)
        vectors = np.empty((count, DIMENSIONS), "<f4")
        cursor = self.connection.execute(f"SELECT id, vector {where} ORDER BY id")
        start = 0
        while batch := cursor.fetchmany(_BATCH):
            end = start + len(batch)
            ids[start:end] = [i for i, _ in batch]
            blobs = np.frombuffer(b"".join(blob for _, blob in batch), "<f4")
            vectors[start:end] = blobs.reshape(-1, DIMENSIONS)
            start = end
        return ids, vectors

    def close(self) -> None:
        """Close the connection."""
        with self._turns:
            self.connection.close()


def _create(path: Path, mode: int) -> None:
    """Create an empty file with its permissions, which SQLite's files beside it will share."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if mode == PRIVATE else 0o777)
    if not path.exists():
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, mode))


def to_blob(vector: "NDArray[np.float32]") -> bytes:
    """Return a vector as little-endian float32 bytes."""
    return vector.astype("<f4").tobytes()
