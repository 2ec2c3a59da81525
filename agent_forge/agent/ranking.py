"""BM25 over the postings of an FTS5 index, kept in memory between queries.

FTS5's own bm25() computes every row that holds any word of the query, and natural questions hold
words that most rows have: that took 16 ms for 4,000 passages. Here the weights of a word are
computed once, from FTS5's own postings and row lengths (its `fts5vocab` and `docsize` tables), and a
query adds up arrays. It scores as bm25() does: k1 = 1.2, b = .75, an inverse document frequency of
at least 1e-6.
"""

import math
import re
import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

K1, B, LEAST_IDF = 1.2, 0.75, 1e-6
# Postings that stay in memory, 12 bytes each; beyond them the words are read anew.
MOST_POSTINGS = 8 * 2**20
_PLAIN = re.compile(r"[a-z0-9]+")


class TextRanking:
    """The rows of one FTS5 table of one column, as they were when this was made."""

    def __init__(self, connection: sqlite3.Connection, table: str) -> None:
        self.connection, self.table = connection, table
        self.vocabulary = f"temp.{table}_instances"
        connection.execute(
            f"CREATE VIRTUAL TABLE IF NOT EXISTS {self.vocabulary} "
            f"USING fts5vocab('main', '{table}', 'instance')"
        )
        rows = connection.execute(f"SELECT id, sz FROM {table}_docsize ORDER BY id").fetchall()
        self.ids: NDArray[np.int64] = np.fromiter((i for i, _ in rows), np.int64, len(rows))
        lengths = np.fromiter((_varint(size) for _, size in rows), np.float64, len(rows))
        self.norms = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0)) if rows else lengths
        self._weights: dict[str, tuple[NDArray[np.int32], NDArray[np.float64]]] = {}
        self._postings = 0

    def best(self, words: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """Return (id, score) of the best rows for any of the words, best first, ties by id."""
        scores = np.zeros(len(self.ids))
        for word in dict.fromkeys(words):
            rows, weights = self._weighted(word)
            scores[rows] += weights
        candidates = np.flatnonzero(scores)
        if 0 < limit < len(candidates):
            border = np.partition(scores[candidates], len(candidates) - limit)[-limit]
            candidates = candidates[scores[candidates] >= border]
        order = candidates[np.argsort(-scores[candidates], kind="stable")][:limit]
        return [(int(self.ids[row]), float(scores[row])) for row in order]

    def _weighted(self, word: str) -> tuple["NDArray[np.int32]", "NDArray[np.float64]"]:
        """Return the rows (positions in `ids`) that hold a word, and what it adds to each."""
        if word not in self._weights:
            rows, counts = self._occurrences(word)
            idf = math.log((len(self.ids) - len(rows) + 0.5) / (len(rows) + 0.5))
            weights = max(idf, LEAST_IDF) * counts * (K1 + 1) / (counts + self.norms[rows])
            self._postings += len(rows)
            if self._postings > MOST_POSTINGS:
                self._weights.clear()
                self._postings = len(rows)
            self._weights[word] = rows, weights
        return self._weights[word]

    def _occurrences(self, word: str) -> tuple["NDArray[np.int32]", "NDArray[np.float64]"]:
        """Return the rows that hold a word, and how often."""
        # One text of all places: 20,000 tuples of two numbers take twice as long.
        sql = f"SELECT group_concat(doc) FROM {self.vocabulary} WHERE term = ?"
        ((places,),) = self.connection.execute(sql, (word,)).fetchall()
        if places is None:
            return np.empty(0, np.int32), np.empty(0)
        ids, counts = np.unique(np.fromstring(places, np.int64, sep=","), return_counts=True)
        return np.searchsorted(self.ids, ids).astype(np.int32), counts.astype(np.float64)


def ranks_alike(words: Sequence[str]) -> bool:
    """Return whether FTS5's tokenizer leaves these words as they are: ASCII letters and digits."""
    return all(_PLAIN.fullmatch(word) for word in words)


def _varint(content: bytes) -> int:
    """Return SQLite's variable-length integer: seven bits per byte, the highest first."""
    value = 0
    for byte in content:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            break
    return value
