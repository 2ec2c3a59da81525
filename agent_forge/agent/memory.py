"""Three memories of an agent on one SQLite file: what happened, what is true, what is in view.

Episodic memory holds every message, searchable. Semantic memory holds facts, at most one current
fact per subject: a new one supersedes the old one, which stays in the file and is never shown
again. Working memory is the newest turns that fit a token budget.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_forge.agent.embedding import embed, words
from agent_forge.agent.store import Store, to_blob

Message = Mapping[str, str]
_CURRENT = "superseded_by IS NULL AND forgotten = 0"


@dataclass(frozen=True, slots=True)
class Episode:
    """One message of the past."""

    id: int
    session: str
    role: str
    content: str
    time: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact; `about` is its subject, or "" when it stands for itself."""

    id: int
    about: str
    content: str
    time: float  # seconds since the epoch
    superseded_by: int | None
    score: float = 0.0


class EpisodicMemory:
    """Messages in the order in which they came, by session."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.clock = clock

    def add(self, session: str, role: str, content: str) -> int:
        """Keep one message; return its id."""
        return self.store.insert(
            "episodes", content, session=session, role=role, content=content, time=self.clock()
        )

    def recent(self, session: str, count: int) -> list[Episode]:
        """Return the newest `count` messages of a session, oldest first."""
        sql = (
            "SELECT id, session, role, content, time FROM episodes WHERE session = ? ORDER "
            "BY id DESC LIMIT ?"
        )
        return [Episode(*row) for row in reversed(self.store.rows(sql, session, count))]

    def search(self, query: str, count: int) -> list[Episode]:
        """Return the messages that fit `query` best by BM25."""
        sql = "SELECT id, session, role, content, time FROM episodes WHERE id = ?"
        return [
            Episode(*self.store.rows(sql, i)[0])
            for i, _ in self.store.match("episodes", query, count)
        ]


class SemanticMemory:
    """Facts found by words and by spelling, fused by reciprocal rank."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self.store = store
        self.clock = clock

    def remember(self, content: str, about: str = "") -> Fact:
        """Keep a fact and return it.

        The same fact again (but for case, spacing and punctuation) is not stored twice. Where
        `about` is given, other current facts about the same subject are superseded.
        """
        about = " ".join(words(about))
        with self.store.transaction():
            return self._remember(content, about)

    def _remember(self, content: str, about: str) -> Fact:
        current = self.store.rows(
            f"SELECT id, content FROM facts WHERE about = ? AND {_CURRENT}", about
        )
        same = [i for i, text in current if words(text) == words(content)]
        if same:
            return self.get(same[0])
        text = f"{about} {content}".strip()
        new = self.store.insert(
            "facts",
            text,
            about=about,
            content=content,
            time=self.clock(),
            vector=to_blob(embed(text)),
        )
        if about:
            self._supersede([i for i, _ in current], new)
        return self.get(new)

    def supersede(self, old: int, content: str) -> Fact:
        """Replace the fact `old` by `content`; the old one is hidden from now on."""
        with self.store.transaction():
            fact = self._remember(content, self.get(old).about)
            if fact.id != old:
                self._supersede([old], fact.id)
        return fact

    def recall(self, query: str, count: int) -> list[Fact]:
        """Return the current facts nearest to `query`, best first.

        A fact whose subject is exactly `query` comes before all others.
        """
        nearest = self.store.hybrid("facts", query, count, _CURRENT)
        sql = f"SELECT id FROM facts WHERE about = ? AND about != '' AND {_CURRENT}"
        exact = self.store.rows(sql, " ".join(words(query)))
        ranked = [(int(i), 1.0) for (i,) in exact]
        ranked += [(i, score) for i, score in nearest if (i, 1.0) not in ranked]
        return [self.get(i, score) for i, score in ranked[:count]]

    def forget(self, about: str) -> int:
        """Hide every current fact about a subject, or with exactly that text; return how many."""
        subject_words = words(about)
        current = self.store.rows(f"SELECT id, about, content FROM facts WHERE {_CURRENT}")
        chosen = [
            i
            for i, subject, text in current
            if subject_words and subject_words in (words(subject), words(text))
        ]
        with self.store.transaction():
            for i in chosen:
                self.store.change("UPDATE facts SET forgotten = 1 WHERE id = ?", i)
            self.store.hide("facts", chosen)
        return len(chosen)

    def history(self, about: str) -> list[Fact]:
        """Return all facts about a subject, superseded ones too, oldest first."""
        sql = "SELECT id FROM facts WHERE about = ? ORDER BY id"
        return [self.get(i) for (i,) in self.store.rows(sql, " ".join(words(about)))]

    def all(self) -> list[Fact]:
        """Return every current fact, oldest first."""
        return [
            self.get(i)
            for (i,) in self.store.rows(f"SELECT id FROM facts WHERE {_CURRENT} ORDER BY id")
        ]

    def get(self, identity: int, score: float = 0.0) -> Fact:
        """Return one fact by id, hidden or not."""
        sql = "SELECT id, about, content, time, superseded_by FROM facts WHERE id = ?"
        number, about, content, when, superseded_by = self.store.rows(sql, identity)[0]
        return Fact(number, about, content, when, superseded_by, score)

    def _supersede(self, old: Sequence[int], new: int) -> None:
        for i in old:
            self.store.change("UPDATE facts SET superseded_by = ? WHERE id = ?", new, i)
        self.store.hide("facts", old)


class WorkingMemory:
    """The part of a conversation that fits a budget; `count_tokens` counts one message."""

    def __init__(self, budget_tokens: int, count_tokens: Callable[[Message], int]) -> None:
        self.budget_tokens = budget_tokens
        self.count_tokens = count_tokens

    def window(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Return system turns and the newest turns that fit, in order.

        The last user turn and what follows it always stay. Turns leave in groups that begin with a
        user turn, so that a tool's answer never stays without its call.
        """
        system = [message for message in messages if message["role"] == "system"]
        groups: list[list[Message]] = []
        for message in messages:
            if message["role"] == "system":
                continue
            if message["role"] == "user" or not groups:
                groups.append([])
            groups[-1].append(message)
        left = self.budget_tokens - sum(map(self.count_tokens, system))
        recent: list[list[Message]] = []
        for group in reversed(groups):
            left -= sum(map(self.count_tokens, group))
            if recent and left < 0:
                break
            recent.append(group)
        return [
            dict(message)
            for message in (*system, *(m for group in reversed(recent) for m in group))
        ]


class Memory:
    """The memories of one agent on one file."""

    def __init__(
        self, path: Path | str = ":memory:", clock: Callable[[], float] = time.time
    ) -> None:
        self.store = Store(path)
        self.episodic = EpisodicMemory(self.store, clock)
        self.semantic = SemanticMemory(self.store, clock)

    def close(self) -> None:
        """Close the file."""
        self.store.close()
