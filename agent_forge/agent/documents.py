"""Search over real documents on this machine: passages of about a hundred words in a SQLite index.

`forge index` (indexing.py) or `DocumentIndex.add` fills it; `search` is BM25, `retrieve` fuses BM25
with vectors for retrieval-augmented answers. `open_index` opens a finished one. A passage knows its
document and the character at which it begins there.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from agent_forge.agent import passages
from agent_forge.agent.embedding import embed
from agent_forge.agent.store import Store, to_blob

UNNAMED = "#"  # what the names of documents without a name begin with


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document. start: characters before it there, -1 where that is not known."""

    id: int
    document: str
    content: str
    score: float
    start: int = -1

    def cited(self) -> str:
        """Return the passage after its source and place; one of an unnamed document stands alone."""
        if not self.document or self.document.startswith(UNNAMED):
            return self.content
        place = f" @{self.start}" if self.start >= 0 else ""
        return f"[{self.document}{place}] {self.content}"


class Documents(Protocol):
    """What the tools search in."""

    def search(self, query: str, count: int) -> list[Passage]:
        """Return the best passages for words."""

    def retrieve(self, query: str, count: int) -> list[Passage]:
        """Return the best passages for a question."""

    def __len__(self) -> int: ...


class DocumentIndex:
    """Passages in `store`. Adding a document a second time changes nothing.

    overlap_words: how many words of the passage before begin the next one.
    """

    def __init__(self, store: Store, passage_words: int = 80, overlap_words: int = 0) -> None:
        self.store = store
        self.passage_words = passage_words
        self.overlap_words = overlap_words

    def add(self, text: str, name: str = "") -> str:
        """Index one document; return its name (made of a hash of the text when none is given)."""
        name = name or UNNAMED + hashlib.sha256(text.encode()).hexdigest()[:12]
        if not self.store.rows("SELECT 1 FROM passages WHERE document = ? LIMIT 1", name):
            self.insert(text, name)
        return name

    def insert(self, text: str, name: str) -> int:
        """Index one document under a name that is not in use; return how many passages it has."""
        pieces = passages.split(text, self.passage_words, self.overlap_words)
        with self.store.transaction():
            for piece in pieces:
                self.store.insert(
                    "passages",
                    piece.text,
                    document=name,
                    content=piece.text,
                    vector=to_blob(embed(piece.text)),
                    start=piece.start,
                )
        return len(pieces)

    def add_all(self, texts: Iterable[str]) -> int:
        """Index documents; return how many passages the index then holds."""
        for text in texts:
            self.add(text)
        return len(self)

    def search(self, query: str, count: int) -> list[Passage]:
        """Return the best passages by BM25."""
        return self._passages(self.store.match("passages", query, count))

    def retrieve(self, query: str, count: int) -> list[Passage]:
        """Return the best passages by BM25 and vectors fused."""
        return self._passages(self.store.hybrid("passages", query, count))

    def __len__(self) -> int:
        return int(self.store.rows("SELECT COUNT(*) FROM passages")[0][0])

    def _passages(self, ranked: list[tuple[int, float]]) -> list[Passage]:
        chosen = []
        for i, score in ranked:
            document, content, start = self.store.rows(
                "SELECT document, content, start FROM passages WHERE id = ?", i
            )[0]
            chosen.append(Passage(i, document, content, score, start))
        return chosen


def open_index(path: Path | str) -> DocumentIndex:
    """Open an index that `forge index` wrote, for reading.

    Raises StorageError for a file of another kind.
    """
    return DocumentIndex(Store(path, read_only=True))


def split_passages(text: str, limit_words: int) -> list[str]:
    """Split text into passages of at most `limit_words` words, at ends of sentences if possible."""
    return [piece.text for piece in passages.split(text, limit_words)]
