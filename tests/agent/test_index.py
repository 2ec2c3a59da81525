"""`forge index`: incremental, resumable, honest about what it left out; and search by a service."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from agent_forge.agent import Call, Memory, Toolbox, ToolContext
from agent_forge.agent import passages as cutting
from agent_forge.agent.documents import DocumentIndex, open_index
from agent_forge.agent.endpoint import SearchEndpoint, WithEndpoint
from agent_forge.agent.indexing import IndexReport, build
from agent_forge.agent.settings import AgentSettings
from agent_forge.agent.sources import open_documents
from agent_forge.agent.store import Store
from agent_forge.core.errors import ConfigError, DataError, StorageError
from agent_forge.core.events import Event, EventLog
from agent_forge.data.documents import check_source, read_source
from agent_forge.data.indexes import is_index

ROOT = Path(__file__).parents[2]


def built(out: Path, *sources: Path | str, **options: Any) -> IndexReport:
    return build([str(s) for s in sources], out, events=EventLog(None, "index"), **options)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """Return a folder of three kinds of text and one file that is not text."""
    folder = tmp_path / "notes"
    (folder / "deep").mkdir(parents=True)
    (folder / "harbor.md").write_text("# Harbor\n\nThe harbor froze over in the winter of 1709.")
    (folder / "deep" / "farm.txt").write_text("Farmers sold their crops. The market was full.")
    (folder / "rows.jsonl").write_text('{"text": "A ship left."}\n{"text": "It came back."}\n')
    (folder / "page.html").write_text("<p>Tea &amp; toast<script>var secret</script></p>")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / ".hidden.txt").write_text("hidden")
    return folder


def contents(out: Path) -> set[tuple[str, str]]:
    rows = open_index(out).store.rows("SELECT document, content FROM passages")
    return {(str(document), str(content)) for document, content in rows}


def test_every_kind_of_text_is_indexed_with_its_source(notes: Path, tmp_path: Path) -> None:
    report = built(tmp_path / "index.db", notes)
    assert (report.added, report.passages, report.unknown) == (4, 5, {".png": 1})
    assert contents(tmp_path / "index.db") == {
        ("notes/harbor.md", "# Harbor The harbor froze over in the winter of 1709."),
        ("notes/deep/farm.txt", "Farmers sold their crops. The market was full."),
        ("notes/rows.jsonl#1", "A ship left."),
        ("notes/rows.jsonl#2", "It came back."),
        ("notes/page.html", "Tea & toast"),
    }


def test_a_second_build_reads_only_what_changed(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.db"
    built(out, notes)
    ids = dict(open_index(out).store.rows("SELECT document, id FROM passages"))
    (notes / "harbor.md").write_text("The harbor is open.")
    (notes / "deep" / "farm.txt").unlink()
    (notes / "new.txt").write_text("Something new.")
    os.utime(notes / "rows.jsonl")  # touched, and the same
    report = built(out, notes)
    assert (report.added, report.changed, report.unchanged, report.removed) == (1, 1, 2, 1)
    store = open_index(out).store
    after = dict(store.rows("SELECT document, id FROM passages"))
    assert after["notes/rows.jsonl#2"] == ids["notes/rows.jsonl#2"]
    assert "notes/deep/farm.txt" not in after
    fresh = tmp_path / "fresh.db"
    built(fresh, notes)
    assert contents(out) == contents(fresh)
    assert store.match("passages", "froze farmers", 5) == []
    assert store.rows("SELECT COUNT(*) FROM passages_text") == [(len(after),)]


def test_other_settings_index_a_file_again(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.db"
    built(out, notes)
    report = built(out, notes, passage_words=4, overlap_words=1)
    assert (report.changed, report.unchanged) == (4, 0)
    fresh = tmp_path / "fresh.db"
    built(fresh, notes, passage_words=4, overlap_words=1)
    assert contents(out) == contents(fresh)


def test_a_build_of_other_sources_keeps_what_is_elsewhere(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.db"
    built(out, notes / "deep")
    report = built(out, notes / "harbor.md")
    assert (report.added, report.removed, report.passages) == (1, 0, 2)


LONG = " ".join(f"Sentence {i} has word{i}." for i in range(200))


def test_long_documents_overlap_and_offsets_point_at_the_words(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(f"\n\n  {LONG}")
    built(tmp_path / "index.db", tmp_path / "long.txt", passage_words=20, overlap_words=5)
    index = open_index(tmp_path / "index.db")
    rows = index.store.rows("SELECT content, start FROM passages ORDER BY id")
    text = (tmp_path / "long.txt").read_text()
    for content, start in rows:
        assert text[start:].startswith(content)
        assert len(content.split()) <= 25
    for (before, _), (after, _) in pairwise(rows):
        assert after.split()[:5] == before.split()[-5:]
    (best,) = index.retrieve("word150", 1)
    assert best.cited().startswith(f"[long.txt @{best.start}] ")


def test_pieces_without_overlap_are_the_document() -> None:
    for limit in (1, 3, 7, 1000):
        pieces = cutting.split(f"{LONG} an end without a mark", limit)
        joined = " ".join(piece.text for piece in pieces)
        assert joined == f"{LONG} an end without a mark"
        assert max(len(piece.text.split()) for piece in pieces) <= limit
    assert cutting.split("  \n ", 5) == []


def test_a_file_that_cannot_be_decoded_is_named_and_the_others_are_indexed(
    notes: Path, tmp_path: Path, forge: Callable
) -> None:
    (notes / "latin.txt").write_bytes("Straße".encode("latin-1"))
    (notes / "bad.jsonl").write_text('{"text": "x"}\n{half')
    out = tmp_path / "index.db"
    done = forge("index", str(notes), "--out", str(out), "--json")
    assert done.returncode == 74
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["added"], len(last["refused"])) == (4, 2)
    assert "latin.txt: byte 4 (line 1) is not utf-8" in done.stderr
    assert "bad.jsonl:2" in done.stderr
    assert "passed over: 1 file of kind .png" in done.stderr
    done = forge("index", str(notes / "latin.txt"), "-o", str(out), "--encoding", "latin-1")
    assert done.returncode == 0
    assert "1 files added" in done.stdout


def test_a_changed_file_that_cannot_be_read_any_more_keeps_its_old_passages(
    notes: Path, tmp_path: Path
) -> None:
    out = tmp_path / "index.db"
    built(out, notes)
    (notes / "harbor.md").write_bytes(b"\xff\xfe\xff")
    report = built(out, notes)
    assert (len(report.refused), report.removed) == (1, 0)
    assert any("1709" in content for _, content in contents(out))


def test_progress_is_told_by_events(notes: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    log = EventLog(None, "index", (events.append,), interval_seconds=0)
    build([str(notes)], tmp_path / "index.db", events=log)
    assert [(e.stage, e.step, e.total) for e in events] == [("files", i, 4) for i in range(1, 5)]


def test_a_packaged_text_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [ROOT / "README.md"]
    monkeypatch.setattr("agent_forge.agent.indexing.files_of", lambda _: files)
    report = built(tmp_path / "index.db", "sotu")
    assert report.added == 1
    assert {document for document, _ in contents(tmp_path / "index.db")} == {"sotu/README.md"}


@pytest.mark.parametrize(
    ("source", "message"), [("nowhere", "neither a file, a folder"), ("sotuu", "package")]
)
def test_a_missing_source_is_one_line(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        built(tmp_path / "index.db", tmp_path / source)


def test_a_file_that_is_no_index_is_not_written_over(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StorageError, match="not an index"):
        built(tmp_path / "thesis.txt", notes)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ConfigError, match="overlap"):
        built(tmp_path / "index.db", notes, passage_words=5, overlap_words=5)


def test_an_index_inside_of_its_own_folder_does_not_index_itself(notes: Path) -> None:
    for _ in range(2):
        assert built(notes / "index.db", notes).unknown == {".png": 1}


def test_a_build_that_was_killed_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i:03}.txt").write_text(f"{LONG} file number{i}")
    out = tmp_path / "index.db"
    command = [sys.executable, "-m", "agent_forge", "index", str(folder), "-o", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as child:
        end = time.monotonic() + 120
        while _indexed(out) < 5 and time.monotonic() < end:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
    before = _indexed(out)
    assert 5 <= before < 120
    report = built(out, folder)
    # A file may have been committed, but not announced to readers that had opened the index before.
    assert report.unchanged - before in (0, 1)
    assert report.added == 120 - report.unchanged
    store = Store(out)
    assert store.rows("PRAGMA integrity_check") == [("ok",)]
    assert store.rows("SELECT COUNT(*), COUNT(DISTINCT document) FROM passages") == [
        (report.passages, 120)
    ]


def _indexed(out: Path) -> int:
    """Return how many files an index holds that is being built."""
    try:
        return len(open_index(out).store.rows("SELECT 1 FROM files"))
    except StorageError:
        return 0


def test_phases_read_an_index_as_text_each_word_once(notes: Path, tmp_path: Path) -> None:
    (notes / "long.txt").write_text(LONG)
    (notes / "repeats.txt").write_text("word " * 50)
    built(tmp_path / "index.db", notes, passage_words=12, overlap_words=5)
    texts = list(read_source(str(tmp_path / "index.db")))
    assert sorted(texts) == sorted([
        LONG, " ".join(["word"] * 50), "A ship left.", "It came back.", "Tea & toast",
        "# Harbor The harbor froze over in the winter of 1709.",
        "Farmers sold their crops. The market was full.",
    ])  # fmt: skip
    check_source(str(tmp_path / "index.db"))
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE bookmarks(address)")
    other.close()
    with pytest.raises(DataError, match="not an index of documents"):
        check_source(str(tmp_path / "other.db"))


# What the agent does with an index.


def test_an_agent_reads_an_index_or_text_but_not_both(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "index.db"
    built(out, notes)
    memory = Memory()
    opened = open_documents(memory.store, [str(out)], "utf-8", AgentSettings())
    box = Toolbox(["search", "retrieve"], ToolContext(documents=opened))
    text = box.run(Call("search", {"query": "harbor", "count": 1})).text
    assert text == "[notes/harbor.md @0] # Harbor The harbor froze over in the winter of 1709."
    assert memory.store.rows("SELECT COUNT(*) FROM passages") == [(0,)]
    with pytest.raises(ConfigError, match="an index is named among"):
        open_documents(memory.store, [str(out), str(notes)], "utf-8", AgentSettings())
    assert is_index(out)
    assert not is_index(notes)
    assert not is_index(notes / "harbor.md")


def test_an_opened_index_is_not_written(notes: Path, tmp_path: Path) -> None:
    built(tmp_path / "index.db", notes)
    with pytest.raises(StorageError, match="readonly"):
        open_index(tmp_path / "index.db").add("more")


# A service on this machine, in the place of one in the network.


class Service(BaseHTTPRequestHandler):
    seen: ClassVar[list[tuple[str, str, Any]]]
    answer: bytes = b""
    status = 200
    wait = threading.Event()

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: Any) -> None:
        self.seen.append((self.command, self.path, body))
        if self.path == "/slow":
            self.wait.wait(30)
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.answer)))
        self.end_headers()
        self.wfile.write(self.answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, type[Service]]]:
    """Return the address of a running service, and its class, which says what it answers."""

    class Own(Service):
        seen: ClassVar[list[tuple[str, str, Any]]] = []
        wait = threading.Event()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Own
    Own.wait.set()
    server.shutdown()
    server.server_close()
    thread.join()


def answer(*entries: dict[str, str]) -> bytes:
    return json.dumps({"results": list(entries)}).encode()


def test_a_service_is_asked_by_post_and_its_results_are_cited(
    service: tuple[str, type[Service]],
) -> None:
    address, own = service
    own.answer = answer({"text": "The  harbor\nfroze.", "source": "almanac"}, {"text": "x"})
    box = Toolbox(["search"], ToolContext(documents=SearchEndpoint(address)))
    result = box.run(Call("search", {"query": "harbor & ice", "count": 1}))
    assert result.text == "[almanac] The harbor froze."
    assert own.seen == [("POST", "/", {"query": "harbor & ice", "count": 1})]


def test_an_address_with_a_query_is_read_by_get_as_searxng_answers(
    service: tuple[str, type[Service]],
) -> None:
    address, own = service
    own.answer = answer({"content": "Ice.", "url": "https://example.org/a", "title": "A"})
    (passage,) = SearchEndpoint(f"{address}/search?q={{query}}&n={{count}}").search("ä &x", 2)
    assert passage.cited() == "[https://example.org/a] Ice."
    assert own.seen == [("GET", "/search?q=%C3%A4%20%26x&n=2", None)]


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [(b"not json", 200, "did not answer"), (b'{"results": 3}', 200, "did not answer"),
     (b"[]", 200, "did not answer"), (b"{}", 500, "Internal Server Error"),
     (b'{"results": []}' + b" " * 5 * 2**20, 200, "more than")],
)  # fmt: skip
def test_what_is_wrong_with_a_service_is_a_result_that_the_model_reads(
    service: tuple[str, type[Service]], content: bytes, status: int, message: str
) -> None:
    address, own = service
    own.answer, own.status = content, status
    box = Toolbox(["search"], ToolContext(documents=SearchEndpoint(address)))
    result = box.run(Call("search", {"query": "x"}))
    assert result.error
    assert message in result.text


def test_a_service_that_does_not_answer_in_time_is_given_up(
    service: tuple[str, type[Service]],
) -> None:
    with pytest.raises(ConfigError, match=r"does not answer: .*timed out"):
        SearchEndpoint(f"{service[0]}/slow", timeout_seconds=0.2).search("x", 1)
    with pytest.raises(ConfigError, match="does not answer"):
        SearchEndpoint("http://127.0.0.1:9").search("x", 1)


def test_retrieve_stays_on_this_machine_while_search_asks_the_service(
    service: tuple[str, type[Service]],
) -> None:
    address, own = service
    own.answer = answer({"text": "from elsewhere"})
    index = DocumentIndex(Memory().store)
    both = WithEndpoint(index, SearchEndpoint(address))
    assert both.retrieve("harbor", 1)[0].content == "from elsewhere"
    index.add("the harbor here")
    assert both.retrieve("harbor", 1)[0].content == "the harbor here"
    assert both.search("harbor", 1)[0].content == "from elsewhere"


def test_a_manifest_alone_sends_searches_to_this_machine_only() -> None:
    store = Memory().store
    near = AgentSettings.from_manifest({"search": {"endpoint": "http://localhost:8888/x"}})
    far = AgentSettings.from_manifest(
        {"search": {"endpoint": "https://example.org/x", "timeout_seconds": 3}}
    )
    assert isinstance(open_documents(store, [], "utf-8", near), WithEndpoint)
    with pytest.raises(ConfigError, match=r"--search-endpoint 'https://example\.org/x'"):
        open_documents(store, [], "utf-8", far)
    named = open_documents(store, [], "utf-8", far, "https://example.org/x")
    assert isinstance(named, WithEndpoint)
    assert named.endpoint.timeout_seconds == 3
    for address in ("file:///etc/passwd", "ftp://x/y", "example.org", ""):
        with pytest.raises(ConfigError, match="http:// or https://"):
            SearchEndpoint(address)
