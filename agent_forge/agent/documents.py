"""Search over real documents on this machine: passages of about a hundred words in a SQLite index.

`DocumentIndex.add` fills it (from `data.documents`, or a user's files); `search` is BM25,
`retrieve` fuses BM25 with vectors for retrieval-augmented answers.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from agent_forge.agent.embedding import embed
from agent_forge.agent.store import Store, to_blob


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document."""

    id: int
    document: str
    content: str
    score: float


class DocumentIndex:
    """Passages in `store`. Adding a document a second time changes nothing."""

    def __init__(self, store: Store, passage_words: int = 80) -> None:
        self.store = store
        self.passage_words = passage_words

    def add(self, text: str, name: str = "") -> str:
        """Index one document; return its name (a hash of the text when none is given)."""
        name = name or hashlib.sha256(text.encode()).hexdigest()[:12]
        if self.store.rows("SELECT 1 FROM passages WHERE document = ? LIMIT 1", name):
            return name
        with self.store.transaction():
            for passage in split_passages(text, self.passage_words):
                self.store.insert(
                    "passages",
                    passage,
                    document=name,
                    content=passage,
                    vector=to_blob(embed(passage)),
                )
        return name

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
        passages = []
        for i, score in ranked:
            document, content = self.store.rows(
                "SELECT document, content FROM passages WHERE id = ?", i
            )[0]
            passages.append(Passage(i, document, content, score))
        return passages


def split_passages(text: str, limit_words: int) -> list[str]:
    """Split text into passages of at most `limit_words` words, at ends of sentences if possible."""
    passages: list[str] = []
    held: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text.strip()):
        parts = sentence.split()
        while parts:
            if held and len(held) + len(parts) > limit_words:
                passages.append(" ".join(held))
                held = []
            held += parts[:limit_words]
            parts = parts[limit_words:]
    return [*passages, " ".join(held)] if held else passages
