"""What lasts: files per user, sources of facts, kills at any moment, older files, exact vectors."""

import os
import random
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from agent_forge.agent import Memory
from agent_forge.agent.documents import DocumentIndex
from agent_forge.agent.embedding import embed, words
from agent_forge.agent.memory import new_session, user_file
from agent_forge.agent.store import Store, to_blob
from agent_forge.cli.chatting import memory_file
from agent_forge.core.errors import ConfigError, StorageError

ROOT = Path(__file__).parents[2]


def test_a_user_has_a_private_file_under_the_state_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert memory_file("", "ada") == str(tmp_path / "agent-forge" / "memory" / "ada.db")
    memory = Memory(user_file("ada"))
    memory.semantic.remember("52", "red box")
    for path in (tmp_path / "agent-forge" / "memory").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert stat.S_IMODE((tmp_path / "agent-forge" / "memory").stat().st_mode) == 0o700
    memory.close()
    assert Memory(user_file("eve")).semantic.all() == []


@pytest.mark.parametrize("name", ["../eve", "a/b", "", ".hidden", "a" * 65, "a\0b", "a b"])
def test_a_users_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match="a user's name"):
        user_file(name)


def test_a_user_and_a_memory_file_are_not_given_together() -> None:
    with pytest.raises(ConfigError, match="give one of them"):
        memory_file("m.db", "ada")
    assert (memory_file("m.db", ""), memory_file("", "")) == ("m.db", ":memory:")


def test_a_fact_knows_every_message_that_stated_it() -> None:
    memory = Memory(clock=lambda: 7.0)
    fact = memory.semantic.remember("52", "red box")
    assert memory.semantic.sources(fact.id) == []
    for session in ("monday", "tuesday"):
        with memory.answering(session, f"it is 52, on {session}"):
            for _ in range(2):
                assert memory.semantic.remember("52.", "Red box").id == fact.id
    sources = memory.semantic.sources(fact.id)
    assert [source.session for source in sources] == ["monday", "tuesday"]
    said = [memory.episodic.recent(s.session, 1)[0] for s in sources]
    assert [(s.episode, e.content) for s, e in zip(sources, said, strict=True)] == [
        (said[0].id, "it is 52, on monday"), (said[1].id, "it is 52, on tuesday"),
    ]  # fmt: skip
    with memory.answering("friday", "now it is 53"):
        newer = memory.semantic.supersede(fact.id, "53")
    assert [source.session for source in memory.semantic.sources(newer.id)] == ["friday"]
    assert len(memory.semantic.sources(fact.id)) == 2


def test_a_message_whose_answer_was_interrupted_is_taken_out_and_facts_stay() -> None:
    memory = Memory()

    def answer() -> None:
        with memory.answering("s", "remember 52"):
            memory.semantic.remember("52", "red box")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer()
    assert memory.episodic.recent("s", 9) == []
    assert memory.episodic.search("remember", 9) == []
    (fact,) = memory.semantic.all()
    assert [(s.session, s.episode) for s in memory.semantic.sources(fact.id)] == [("s", None)]


def test_sessions_are_listed_in_the_order_of_their_last_message() -> None:
    episodic = Memory().episodic
    for session in ("a", "b", "b", "a"):
        episodic.add(session, "user", "x")
    assert episodic.sessions() == [("b", 2), ("a", 2)]
    assert len({new_session() for _ in range(20)}) > 1


# A child writes facts and messages and says after each that it is written; it is killed while it
# does so.
WRITER = """
import sys
from agent_forge.agent.memory import Memory
memory = Memory(sys.argv[1])
number = len(memory.semantic.history("counter")) + 1
print("ready", flush=True)
while True:
    memory.semantic.remember(f"value {number}", "counter")
    memory.episodic.add("s", "user", f"message {number}")
    print(number, flush=True)
    number += 1
"""


def test_kills_at_random_moments_lose_no_acknowledged_write(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    generator = random.Random(7)
    acknowledged: set[int] = set()
    for _ in range(8):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, str(file)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as child:  # fmt: skip
            assert child.stdout is not None
            assert child.stdout.readline().strip() == "ready"
            threading.Timer(generator.uniform(0.001, 0.08), child.kill).start()
            acknowledged |= {int(line) for line in child.stdout if line.strip()}
        memory = Memory(file)
        assert memory.store.rows("PRAGMA integrity_check") == [("ok",)]
        memory.store.connection.execute(
            "INSERT INTO facts_text(facts_text) VALUES ('integrity-check')"
        )
        history = memory.semantic.history("counter")
        contents = [fact.content for fact in history]
        assert contents == [f"value {i}" for i in range(1, len(contents) + 1)]
        assert len(contents) >= max(acknowledged, default=0)
        messages = {e.content for e in memory.episodic.recent("s", 10**6)}
        assert {f"message {i}" for i in acknowledged} <= messages
        # At most one fact is current and in the text index, wherever the kill came.
        assert [fact.content for fact in memory.semantic.all()] == contents[-1:]
        assert memory.store.rows("SELECT COUNT(*) FROM facts_text") == [(min(1, len(contents)),)]
        memory.close()
    assert acknowledged


def test_writers_of_several_processes_all_keep_their_facts(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    code = (
        "import sys; from agent_forge.agent.memory import Memory; m = Memory(sys.argv[1])\n"
        "for i in range(40): m.semantic.remember(f'{sys.argv[2]} {i}', f'{sys.argv[2]} {i}')"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(file), name], env={
            **os.environ, "PYTHONPATH": str(ROOT)})
        for name in ("one", "two", "three")
    ]  # fmt: skip
    assert [child.wait(120) for child in children] == [0, 0, 0]
    memory = Memory(file)
    assert len(memory.semantic.all()) == 120
    assert memory.store.rows("PRAGMA integrity_check") == [("ok",)]


OLD_TABLES = """
CREATE TABLE episodes(id INTEGER PRIMARY KEY, session TEXT NOT NULL, role TEXT NOT NULL,
    content TEXT NOT NULL, time REAL NOT NULL);
CREATE TABLE facts(id INTEGER PRIMARY KEY, about TEXT NOT NULL, content TEXT NOT NULL,
    time REAL NOT NULL, superseded_by INTEGER, forgotten INTEGER NOT NULL DEFAULT 0,
    vector BLOB NOT NULL);
CREATE INDEX facts_about ON facts(about);
CREATE TABLE passages(id INTEGER PRIMARY KEY, document TEXT NOT NULL, content TEXT NOT NULL,
    vector BLOB NOT NULL);
CREATE INDEX passages_document ON passages(document);
CREATE VIRTUAL TABLE episodes_text USING fts5(content);
CREATE VIRTUAL TABLE facts_text USING fts5(content);
CREATE VIRTUAL TABLE passages_text USING fts5(content);
"""


def test_a_file_of_the_first_version_is_brought_up_to_date_with_its_facts(tmp_path: Path) -> None:
    file = tmp_path / "old.db"
    old = sqlite3.connect(file)
    old.executescript(OLD_TABLES)
    vector = to_blob(embed("red box 52"))
    old.execute("INSERT INTO facts VALUES (1, 'red box', '52', 1.0, NULL, 0, ?)", (vector,))
    old.execute("INSERT INTO facts_text(rowid, content) VALUES (1, 'red box 52')")
    old.commit()
    old.close()
    with pytest.raises(StorageError, match="not an index"):
        Store(file, read_only=True)
    memory = Memory(file)
    assert memory.semantic.recall("red box", 1)[0].content == "52"
    with memory.answering("s", "53"):
        fact = memory.semantic.remember("53", "red box")
    assert memory.semantic.sources(fact.id)[0].session == "s"
    assert [fact.content for fact in memory.semantic.all()] == ["53"]


def test_a_file_of_a_newer_version_or_of_another_program_is_refused(tmp_path: Path) -> None:
    newer = sqlite3.connect(tmp_path / "newer.db")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(StorageError, match="version 99"):
        Memory(tmp_path / "newer.db")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE bookmarks(address)")
    other.close()
    with pytest.raises(StorageError, match="another program"):
        Memory(tmp_path / "other.db")


def brute_force(store: Store, query: str, limit: int) -> list[int]:
    """Return the ids of the nearest current facts, by one product per stored vector."""
    rows = store.rows(
        "SELECT id, vector FROM facts WHERE superseded_by IS NULL AND forgotten = 0 ORDER BY id"
    )
    matrix = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(len(rows), -1)
    cosines = matrix @ embed(query)
    ranked = sorted(zip(-cosines, [i for i, _ in rows], strict=True))
    return [i for cosine, i in ranked[:limit] if cosine < 0]


@pytest.mark.parametrize("limit", [1, 3, 20, 500])
def test_nearest_is_brute_force_with_ties_by_id_after_every_kind_of_change(
    limit: int, tmp_path: Path
) -> None:
    one, two = Memory(tmp_path / "m.db"), Memory(tmp_path / "m.db")
    for i in range(60):
        one.semantic.remember(f"the {('red', 'blue')[i % 2]} box {i % 5}", f"box {i}")
    changes = [
        lambda: None,
        lambda: two.semantic.remember("the red box again", "box 1"),
        lambda: two.semantic.forget("box 4"),
        lambda: one.semantic.remember("the red red box", ""),
    ]
    for change in changes:
        change()
        for query in ("red box", "box 3", "blue"):
            expected = brute_force(one.store, query, limit)
            assert [i for i, _ in one.store.nearest("facts", query, limit)] == expected


def test_vectors_are_read_once_while_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory()
    memory.semantic.remember("52", "red box")
    reads = []
    real = Store._read_vectors
    monkeypatch.setattr(Store, "_read_vectors", lambda s, t: reads.append(t) or real(s, t))
    for _ in range(3):
        memory.semantic.recall("red", 1)
        memory.episodic.add("s", "user", "something else")
    assert reads == ["facts"]
    memory.semantic.remember("53", "red box")
    memory.semantic.recall("red", 1)
    assert reads == ["facts", "facts"]
    monkeypatch.setattr("agent_forge.agent.store.CACHE_BYTES", 0)
    memory.semantic.remember("54", "red box")
    assert [f.content for f in memory.semantic.recall("red", 1)] == ["54"]
    memory.semantic.recall("red", 1)
    assert len(reads) == 4


def test_a_disk_that_is_full_is_one_line_and_the_file_stays_whole(small_disk: Path) -> None:
    memory = Memory(small_disk / "m.db")
    memory.semantic.remember("52", "red box")

    def fill() -> None:
        for _ in range(200):
            memory.episodic.add("s", "user", "word " * 20000)

    with pytest.raises(StorageError, match=r"cannot write .*m\.db"):
        fill()
    assert [fact.content for fact in memory.semantic.all()] == ["52"]
    assert memory.store.rows("PRAGMA integrity_check") == [("ok",)]


def by_fts5(store: Store, query: str, limit: int) -> list[tuple[int, float]]:
    """Return what FTS5's own bm25() ranks first."""
    quoted = " OR ".join(f'"{word}"' for word in dict.fromkeys(words(query)))
    sql = (
        "SELECT rowid, -bm25(passages_text) AS score FROM passages_text "
        "WHERE passages_text MATCH ? ORDER BY score DESC, rowid LIMIT ?"
    )
    return [(int(i), float(score)) for i, score in store.rows(sql, quoted, limit)]


LETTERS = [
    "the",
    "the",
    "the",
    "of",
    "of",
    "a",
    "harbor",
    "winter",
    "code",
    "47",
    "naïve",
    "gate_north",
    "x1",
]


@pytest.mark.parametrize("limit", [1, 5, 1000])
def test_the_ranking_of_passages_is_that_of_fts5_after_every_change(limit: int) -> None:
    generator = random.Random(limit)
    index = DocumentIndex(Store())
    for change in range(3):
        for number in range(40):
            text = " ".join(generator.choices(LETTERS, k=generator.randint(1, 300)))
            index.insert(text, f"{change} {number}")
        index.store.hide("passages", [1 + change])
        for _ in range(20):
            query = " ".join(generator.choices([*LETTERS, "absent"], k=generator.randint(1, 5)))
            expected = by_fts5(index.store, query, 10**6)
            ranking = index.store.match("passages", query, limit)
            # Sums in another order differ in their last bits, so equal scores may change places.
            scores = [score for _, score in expected][:limit]
            assert [score for _, score in ranking] == pytest.approx(scores, rel=1e-9)
            assert dict(ranking) == pytest.approx({i: dict(expected)[i] for i, _ in ranking})


def test_a_ranking_whose_words_do_not_fit_in_memory_reads_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_forge.agent.ranking.MOST_POSTINGS", 3)
    index = DocumentIndex(Store())
    for number in range(4):
        index.insert(f"harbor winter {'code ' * number}", str(number))
    for query in ("harbor code", "winter", "harbor winter code", "code"):
        assert index.store.match("passages", query, 9) == [
            (i, pytest.approx(score)) for i, score in by_fts5(index.store, query, 9)
        ]
