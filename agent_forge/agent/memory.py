"""The lasting memories of an agent on one SQLite file: what happened, and what is true.

Episodic memory holds every message, searchable. Semantic memory holds facts, at most one current
fact per subject: a new one supersedes the old one, which stays in the file and is never shown
again. Every fact knows the messages that it came from. What is in view of the model is
`working.py`.
"""

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent_forge.agent.embedding import embed, words
from agent_forge.agent.store import MEMORY, Store, to_blob
from agent_forge.core.errors import ConfigError

_CURRENT = "superseded_by IS NULL AND forgotten = 0"
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def user_file(user: str) -> Path:
    """Return the memory file of a user: agent-forge/memory/NAME.db under XDG_STATE_HOME.

    XDG_STATE_HOME is ~/.local/state where it is not set. Raises ConfigError for a name that could
    be a path.
    """
    if not _USER.fullmatch(user):
        raise ConfigError(
            f"a user's name has 1 to 64 letters, digits, '.', '_' or '-', got '{user}'; "
            "name a file with --memory instead"
        )
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "agent-forge" / "memory" / f"{user}.db"


def new_session() -> str:
    """Return a name for a conversation that begins now, different from every other."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S')}-{secrets.token_hex(2)}"


@dataclass(frozen=True, slots=True)
class Episode:
    """One message of the past."""

    id: int
    session: str
    role: str
    content: str
    time: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class FactSource:
    """Where a fact was stated: a session, and the message there (None where it is not known)."""

    session: str
    episode: int | None
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

    def remove(self, identity: int) -> None:
        """Take one message out again, for instance one whose answer was interrupted."""
        with self.store.transaction():
            self.store.hide("episodes", [identity])
            self.store.change("DELETE FROM episodes WHERE id = ?", identity)

    def sessions(self) -> list[tuple[str, int]]:
        """Return (session, number of messages), the newest session last."""
        sql = "SELECT session, COUNT(*) FROM episodes GROUP BY session ORDER BY MAX(id)"
        return [(str(name), int(count)) for name, count in self.store.rows(sql)]

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
        # The message that is being answered, which facts that are kept meanwhile came from.
        self.origin: tuple[str, int | None] | None = None

    def remember(self, content: str, about: str = "") -> Fact:
        """Keep a fact and return it.

        The same fact again (but for case, spacing and punctuation) is not stored twice; it gains a
        source. Where `about` is given, other current facts about the same subject are superseded.
        """
        about = " ".join(words(about))
        with self.store.transaction():
            fact = self._remember(content, about)
            self._note_source(fact.id)
            return fact

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
            self._note_source(fact.id)
            if fact.id != old:
                self._supersede([old], fact.id)
        return fact

    def sources(self, fact: int) -> list[FactSource]:
        """Return where a fact was stated, oldest first; empty where no conversation stated it."""
        sql = "SELECT session, episode, time FROM sources WHERE fact = ? ORDER BY rowid"
        return [FactSource(*row) for row in self.store.rows(sql, fact)]

    def _note_source(self, fact: int) -> None:
        if self.origin is None:
            return
        session, episode = self.origin
        self.store.change(
            "INSERT INTO sources(fact, session, episode, time) SELECT ?1, ?2, ?3, ?4 WHERE NOT "
            "EXISTS (SELECT 1 FROM sources WHERE fact = ?1 AND session = ?2 AND episode IS ?3)",
            fact, session, episode, self.clock(),
        )  # fmt: skip

    def recall(self, query: str, count: int) -> list[Fact]:
        """Return the current facts nearest to `query`, best first.

        A fact whose subject is exactly `query` comes before all others.
        """
        nearest = self.store.hybrid("facts", query, count)
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


class Memory:
    """The memories of one agent on one file."""

    def __init__(self, path: Path | str = MEMORY, clock: Callable[[], float] = time.time) -> None:
        self.store = Store(path)
        self.episodic = EpisodicMemory(self.store, clock)
        self.semantic = SemanticMemory(self.store, clock)

    @contextmanager
    def answering(self, session: str, question: str) -> Iterator[None]:
        """Keep a user's message while it is answered; facts that are kept inside came from it.

        A message whose answer fails or is interrupted is taken out again. Facts that tools kept
        before that stay, with the session alone as their source.
        """
        episode = self.episodic.add(session, "user", question)
        outer, self.semantic.origin = self.semantic.origin, (session, episode)
        try:
            yield
        except BaseException:
            self.episodic.remove(episode)
            self.store.change("UPDATE sources SET episode = NULL WHERE episode = ?", episode)
            raise
        finally:
            self.semantic.origin = outer

    def close(self) -> None:
        """Close the file."""
        self.store.close()
