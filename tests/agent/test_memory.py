"""Memories: BM25 ranking, facts that supersede others, several processes, and SQL as plain text."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from agent_forge.agent import Memory, WorkingMemory
from agent_forge.agent.embedding import embed, fuse
from agent_forge.agent.store import Store
from agent_forge.core.errors import StorageError

TEXTS = (
    "the red box holds the code of the north gate",
    "the blue box is empty",
    "a ship left the north harbor with a red flag",
    "red red red paint for the old door of the red house",
    "nothing here",
    "the code is written on the old map of the harbor",
    "winter came early to the farm",
)


def reference_bm25(
    query: list[str], texts: tuple[str, ...], k1: float = 1.2, b: float = 0.75
) -> list[float]:
    """Return BM25 by its formula (Robertson, Zaragoza 2009).

    As in FTS5, the inverse document frequency is at least 1e-6.
    """
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for term in query:
            having = sum(term in other for other in documents)
            idf = max(math.log((len(documents) - having + 0.5) / (having + 0.5)), 1e-6)
            f = words.count(term)
            score += idf * f * (k1 + 1) / (f + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(
    "query", ["red box", "old harbor code", "north", "the winter", "red red door"]
)
def test_full_text_ranking_is_reference_bm25(query: str) -> None:
    store = Store()
    for text in TEXTS:
        store.insert("episodes", text, session="s", role="user", content=text, time=0.0)
    expected = reference_bm25(list(dict.fromkeys(query.split())), TEXTS)
    ranking = store.match("episodes", query, 10)
    assert [score for _, score in ranking] == pytest.approx(
        sorted((s for s in expected if s > 0), reverse=True), rel=1e-6
    )
    assert all(score == pytest.approx(expected[i - 1], rel=1e-6) for i, score in ranking)


def test_a_newer_fact_hides_the_older_one_and_keeps_it_in_the_history() -> None:
    memory = Memory().semantic
    old = memory.remember("47", "red box")
    new = memory.remember("52", "red box")
    assert [fact.content for fact in memory.recall("red box", 5)] == ["52"]
    assert "47" not in [fact.content for fact in memory.recall("47", 5)]
    assert [(fact.id, fact.superseded_by) for fact in memory.history("red box")] == [
        (old.id, new.id),
        (new.id, None),
    ]


def test_superseded_facts_do_not_count_in_the_ranking() -> None:
    changed, fresh = Memory(), Memory()
    changed.semantic.remember("harbor harbor harbor", "box")
    for memory in (changed, fresh):
        memory.semantic.remember("the gate by the harbor", "box")
        memory.semantic.remember("the farm", "house")
    assert [s for _, s in changed.store.match("facts", "harbor", 5)] == pytest.approx(
        [s for _, s in fresh.store.match("facts", "harbor", 5)]
    )


def test_the_same_fact_is_stored_once() -> None:
    memory = Memory().semantic
    first = memory.remember("The gate is red.", "gate")
    assert memory.remember("the gate  is RED", "Gate").id == first.id
    assert len(memory.all()) == 1


def test_supersede_by_id_works_for_facts_without_a_subject() -> None:
    memory = Memory().semantic
    old = memory.remember("the ship sails on Monday")
    new = memory.supersede(old.id, "the ship sails on Friday")
    assert [fact.id for fact in memory.recall("ship sails", 5)] == [new.id]


def test_forgotten_facts_are_gone_from_recall() -> None:
    memory = Memory().semantic
    memory.remember("47", "red box")
    memory.remember("48", "blue box")
    assert memory.forget("red box") == 1
    assert memory.forget("") == 0
    assert [fact.about for fact in memory.recall("red box", 5)] == ["blue box"]


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE facts; --", '" OR 1=1 --', "a\x00b", "NEAR(a b) AND *", "col:red^2 NOT",
     "x' UNION SELECT * FROM facts --", "()*+-\"'", "🔑 ключ", ""],
)  # fmt: skip
def test_injected_sql_and_query_syntax_is_plain_text(text: str) -> None:
    memory = Memory()
    memory.semantic.remember("safe", "keeper")
    memory.semantic.remember(text or "empty", text)
    memory.semantic.recall(text, 5)
    memory.semantic.forget(text + " never stored")
    memory.episodic.add(text, text, text)
    assert [episode.content for episode in memory.episodic.recent(text, 5)] == [text]
    memory.episodic.search(text, 5)
    assert memory.semantic.recall("keeper", 1)[0].content == "safe"
    tables = {
        name for (name,) in memory.store.rows("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    assert {"facts", "episodes", "passages"} <= tables


def test_memories_persist_across_processes(tmp_path: Path) -> None:
    file = tmp_path / "memory.db"
    code = (
        "import sys; from agent_forge.agent import Memory; m = Memory(sys.argv[1]); "
        "m.semantic.remember('52', 'red box'); m.episodic.add('s', 'user', 'hello'); "
        "import os; os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == 9
    memory = Memory(file)
    assert memory.store.rows("PRAGMA journal_mode") == [("wal",)]
    assert memory.semantic.recall("red box", 1)[0].content == "52"
    assert memory.episodic.recent("s", 1)[0].content == "hello"
    memory.close()


def test_two_connections_see_each_others_writes(tmp_path: Path) -> None:
    one, two = Memory(tmp_path / "m.db"), Memory(tmp_path / "m.db")
    one.semantic.remember("47", "red box")
    two.semantic.remember("52", "red box")
    assert [fact.content for fact in one.semantic.recall("red box", 5)] == ["52"]


def test_an_unwritable_memory_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot open \S+: .*; name another file"):
        Memory(tmp_path / "file" / "memory.db")


def test_a_failed_write_leaves_nothing() -> None:
    store = Store()

    def write_and_fail() -> None:
        with store.transaction():
            store.insert("episodes", "x", session="s", role="user", content="x", time=0.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert store.rows("SELECT COUNT(*) FROM episodes") == [(0,)]
    assert store.match("episodes", "x", 5) == []


def test_vectors_find_near_spellings_that_words_miss() -> None:
    memory = Memory().semantic
    memory.remember("sailing on Friday", "departure")
    memory.remember("closed in winter", "market")
    assert memory.recall("departures", 1)[0].about == "departure"


def test_facts_that_share_nothing_with_the_question_are_not_recalled() -> None:
    memory = Memory().semantic
    for number, text in enumerate(
        ["closed in winter", "sailing on Friday", "the blue door", "nine o'clock"]
    ):
        memory.remember(text, f"subject{number}")
    query = "xylophone quartz"
    alike = {
        fact.id
        for fact in memory.all()
        if float(embed(f"{fact.about} {fact.content}") @ embed(query)) > 0
    }
    assert len(alike) < 4, "every fact shares a hash with the question; ask another"
    assert {fact.id for fact in memory.recall(query, 10)} == alike


def test_vectors_are_unit_length_and_equal_for_equal_words() -> None:
    vector = embed("The red box")
    assert float(vector @ vector) == pytest.approx(1.0, abs=1e-6)
    assert (embed("the RED, box!") == vector).all()
    assert not embed("!?").any()


def test_reciprocal_rank_fusion_is_the_formula() -> None:
    assert fuse([[1, 2], [2, 3]]) == [
        (2, pytest.approx(1 / 62 + 1 / 61)),
        (1, pytest.approx(1 / 61)),
        (3, pytest.approx(1 / 62)),
    ]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_the_window_keeps_the_system_turn_and_the_newest_whole_exchanges() -> None:
    talk = [
        message("system", "s"),
        *(
            message("user", "aa"),
            message("assistant", "bb"),
            message("tool", "cc"),
            message("assistant", "dd"),
        ),
        *(message("user", "ee"), message("assistant", "ff")),
        message("user", "gg"),
    ]
    window = WorkingMemory(9, lambda m: len(m["content"])).window(talk)
    assert [m["content"] for m in window] == ["s", "ee", "ff", "gg"]
    assert WorkingMemory(15, lambda m: len(m["content"])).window(talk) == talk


def test_the_last_user_turn_stays_even_when_it_is_too_long() -> None:
    window = WorkingMemory(1, lambda m: len(m["content"])).window(
        [message("user", "old"), message("user", "too long")]
    )
    assert [m["content"] for m in window] == ["too long"]
