"""One SQLite file (WAL) with full-text search and exact vectors, for memories and documents.

Every value is bound, never pasted into SQL; queries are quoted word by word, so no text is read as
FTS5 syntax. Ranking is FTS5's bm25 (k1 = 1.2, b = .75).
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_forge.agent.embedding import DIMENSIONS, embed, fuse, words
from agent_forge.core.errors import StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TABLES = ("episodes", "facts", "passages")

SCHEMA = """
CREATE TABLE IF NOT EXISTS episodes(
    id INTEGER PRIMARY KEY, session TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
    time REAL NOT NULL);
CREATE TABLE IF NOT EXISTS facts(
    id INTEGER PRIMARY KEY, about TEXT NOT NULL, content TEXT NOT NULL, time REAL NOT NULL,
    superseded_by INTEGER, forgotten INTEGER NOT NULL DEFAULT 0, vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS facts_about ON facts(about);
CREATE TABLE IF NOT EXISTS passages(
    id INTEGER PRIMARY KEY, document TEXT NOT NULL, content TEXT NOT NULL, vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS passages_document ON passages(document);
CREATE VIRTUAL TABLE IF NOT EXISTS episodes_text USING fts5(content);
CREATE VIRTUAL TABLE IF NOT EXISTS facts_text USING fts5(content);
CREATE VIRTUAL TABLE IF NOT EXISTS passages_text USING fts5(content);
"""


class Store:
    """A connection to the file at `path` (":memory:" stays in this process).

    Raises StorageError if it cannot open.
    """

    def __init__(self, path: Path | str = ":memory:") -> None:
        self.path = str(path)
        try:
            if self.path != ":memory:":
                Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            self.connection = sqlite3.connect(
                self.path, timeout=30.0, isolation_level=None, check_same_thread=False
            )
            self.connection.execute("PRAGMA journal_mode=WAL")
            self.connection.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"cannot open the memory file {self.path}: {error}; name another file"
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the writes inside one transaction: all of them, or none after an error.

        A nested transaction joins the outer one.
        """
        if self.connection.in_transaction:
            yield
            return
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

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
        quoted = " OR ".join(f'"{word}"' for word in dict.fromkeys(words(query)))
        if not quoted:
            return []
        sql = (
            f"SELECT rowid, -bm25({table}_text) AS score FROM {table}_text WHERE "
            f"{table}_text MATCH ? "
            "ORDER BY score DESC, rowid LIMIT ?"
        )
        return [(int(i), float(score)) for i, score in self.rows(sql, quoted, limit)]

    def nearest(
        self, table: str, query: str, limit: int, condition: str = "1"
    ) -> list[tuple[int, float]]:
        """Return (id, cosine) of the rows nearest to `query`, best first, where it is positive.

        The search is exact; rows with equal cosines are ordered by id.
        """
        assert table in ("facts", "passages")
        rows = self.rows(f"SELECT id, vector FROM {table} WHERE {condition} ORDER BY id")
        if not rows:
            return []
        vectors: NDArray[np.float32] = np.frombuffer(
            b"".join(blob for _, blob in rows), "<f4"
        ).reshape(-1, DIMENSIONS)
        cosines = vectors @ embed(query)
        order = np.argsort(-cosines, kind="stable")[:limit]
        return [(int(rows[i][0]), float(cosines[i])) for i in order if cosines[i] > 0.0]

    def hybrid(
        self, table: str, query: str, limit: int, condition: str = "1"
    ) -> list[tuple[int, float]]:
        """Return (id, fused score): BM25 and vectors merged by reciprocal rank."""
        depth = max(20, 2 * limit)
        texts = [i for i, _ in self.match(table, query, depth)]
        vectors = [i for i, _ in self.nearest(table, query, depth, condition)]
        return fuse([texts, vectors])[:limit]

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


def to_blob(vector: "NDArray[np.float32]") -> bytes:
    """Return a vector as little-endian float32 bytes."""
    return vector.astype("<f4").tobytes()
