"""The audit log shows every edit, deletion, swap and cut; writers of many processes are in order."""

import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_forge.core.errors import ConfigError, ForgeError, StorageError
from agent_forge.server import audit
from agent_forge.server.audit import AuditError, AuditLog, CommandHeads, FileHeads, Head, verify
from agent_forge.server.audit_middleware import AuditMiddleware

RECORDS = 6


def written(folder: Path, count: int = RECORDS, **options: Any) -> AuditLog:
    """Return a log with `count` records in `folder`."""
    log = AuditLog(folder / "audit.jsonl", **options)
    for number in range(count):
        log.append(f"key-{number % 2}", "phases.start", f"job-{number}", {"phase": "bitnet"})
    return log


def lines_of(log: AuditLog) -> list[bytes]:
    return log.path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> AuditLog:
    """Return a log that the tests of this module change and put back."""
    return written(tmp_path_factory.mktemp("audit"))


def test_a_whole_log_is_intact_and_its_records_say_who_did_what(log: AuditLog) -> None:
    result = verify(log.path)
    assert (result.intact, result.records, result.head) == (True, RECORDS, log.head())
    record = json.loads(lines_of(log)[2])
    assert {k: record[k] for k in ("seq", "actor", "action", "target", "detail")} == {
        "seq": 3, "actor": "key-0", "action": "phases.start", "target": "job-2",
        "detail": {"phase": "bitnet"},
    }  # fmt: skip


def test_files_are_readable_only_by_their_owner(log: AuditLog) -> None:
    for name in ("audit.jsonl", "audit.key"):
        assert (log.path.parent / name).stat().st_mode & 0o077 == 0


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_single_byte_that_is_edited_in_log_or_head_is_detected(
    log: AuditLog, data: st.DataObject
) -> None:
    file = data.draw(st.sampled_from([log.path, log.path.with_suffix(".head")]))
    before = file.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda new: new != before[place]))
    try:
        file.write_bytes(before[:place] + bytes([value]) + before[place + 1 :])
        assert not verify(log.path).intact
    finally:
        file.write_bytes(before)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_byte_that_is_inserted_or_removed_is_detected(
    log: AuditLog, data: st.DataObject
) -> None:
    before = log.path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    insert = data.draw(st.sampled_from([b"", b" ", b"\n", b"0", b'"']))
    try:
        log.path.write_bytes(before[:place] + insert + before[place + (not insert) :])
        assert not verify(log.path).intact
    finally:
        log.path.write_bytes(before)


@pytest.mark.parametrize("text", [" {}\n", "{}", "{}\n\n", "0{}\n", "{}\r\n", "{}\t\n"])
def test_a_head_that_means_the_same_in_other_bytes_is_an_edit(log: AuditLog, text: str) -> None:
    file = log.path.with_suffix(".head")
    before = file.read_bytes()
    assert before == f"{log.head()}\n".encode()
    try:
        file.write_text(text.format(before.decode().strip()), newline="")
        assert not verify(log.path).intact
    finally:
        file.write_bytes(before)


CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a record deleted": lambda lines: lines[:2] + lines[3:],
    "the first record deleted": lambda lines: lines[1:],
    "the last record deleted": lambda lines: lines[:-1],
    "two records swapped": lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
    "a record repeated": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "everything deleted": lambda _: [],
    "cut inside of a record": lambda lines: [*lines[:-1], lines[-1][:50]],
    "the last line end cut": lambda lines: [*lines[:-1], lines[-1][:-1]],
    "an empty line inserted": lambda lines: [*lines[:2], b"\n", *lines[2:]],
    "an actor renamed": lambda lines: [lines[0].replace(b"key-0", b"key-1"), *lines[1:]],
    "spaces inserted": lambda lines: [lines[0].replace(b",", b", ", 1), *lines[1:]],
    "a key twice in a record": lambda lines: [b'{"seq":1,' + lines[0][1:], *lines[1:]],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_log_is_detected(log: AuditLog, change: str) -> None:
    before = log.path.read_bytes()
    try:
        log.path.write_bytes(b"".join(CHANGES[change](lines_of(log))))
        assert not verify(log.path).intact
    finally:
        log.path.write_bytes(before)


def test_a_log_written_anew_by_one_who_lacks_the_key_is_detected(log: AuditLog) -> None:
    before = log.path.read_bytes()
    other = AuditLog(log.path.parent / "forged" / "audit.jsonl", key=b"x" * 32)
    for line in lines_of(log):
        record = json.loads(line)
        other.append("key-9", record["action"], record["target"], record["detail"])
    try:
        log.path.write_bytes(other.path.read_bytes())
        assert not verify(log.path).intact
    finally:
        log.path.write_bytes(before)


def test_a_cut_with_the_head_set_back_shows_only_against_a_head_kept_elsewhere(
    tmp_path: Path,
) -> None:
    elsewhere = tmp_path / "elsewhere.txt"
    log = written(tmp_path / "state", 3, heads=[FileHeads(elsewhere)])
    earlier = log.path.read_bytes(), log.path.with_suffix(".head").read_bytes()
    log.append("key-1", "models.delete", "best")
    log.path.write_bytes(earlier[0])
    log.path.with_suffix(".head").write_bytes(earlier[1])
    assert verify(log.path).intact
    heads = audit.read_heads(elsewhere.read_text())
    assert [head.seq for head in heads] == [1, 2, 3, 4]
    result = verify(log.path, heads=heads)
    assert [problem[:7] for problem in result.problems] == ["head 4:"]


def test_a_chain_forged_with_the_key_shows_against_a_head_kept_elsewhere(tmp_path: Path) -> None:
    head = written(tmp_path / "real", 3).head()
    key = audit.read_key(tmp_path / "real" / "audit.jsonl")
    forged = written(tmp_path / "forged", 2, key=key)
    forged.append("key-0", "phases.start", "another job")
    assert verify(forged.path, key=key).intact
    assert not verify(forged.path, key=key, heads=[head]).intact


def test_a_log_that_was_cut_is_not_written_to(tmp_path: Path) -> None:
    log = written(tmp_path)
    log.path.write_bytes(b"".join(lines_of(log)[:-2]))
    with pytest.raises(AuditError, match="ends at record 4, its head names record 6"):
        log.append("key-0", "phases.start")


def test_an_end_that_a_killed_writer_left_is_replaced_by_a_record_of_it(tmp_path: Path) -> None:
    log = written(tmp_path, 2)
    with log.path.open("ab") as file:
        file.write(b'{"seq":3,"time":"2026')
    assert not verify(log.path).intact
    log.append("key-0", "phases.stop")
    assert verify(log.path).intact
    third, fourth = (json.loads(line) for line in lines_of(log)[2:])
    assert (third["action"], third["detail"]["bytes"]) == ("audit.recovered", 21)
    assert fourth["action"] == "phases.stop"


def append_many(path: Path, name: str, count: int) -> None:
    log = AuditLog(path)
    for number in range(count):
        log.append(name, "count", str(number))


def test_a_head_that_a_power_cut_left_behind_the_log_is_caught_up_with(tmp_path: Path) -> None:
    log = written(tmp_path)
    file = log.path.with_suffix(".head")
    older = file.read_bytes()
    log.append("key-0", "phases.start")
    file.write_bytes(older)
    assert verify(log.path).intact
    assert log.append("key-0", "phases.start").seq == RECORDS + 2
    assert verify(log.path).intact


def test_an_append_flushes_the_record_and_the_head_and_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each flush costs a client that starts something milliseconds."""
    log = written(tmp_path)
    flushed: list[str] = []

    def noted(real: Callable[[int], None], descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, partial(noted, getattr(os, name)))
    before = log.path.with_suffix(".head").stat().st_ino
    log.append("key-0", "phases.start")
    assert flushed == ["audit.jsonl", "audit.head"]
    assert log.path.with_suffix(".head").stat().st_ino == before


def test_a_head_with_more_digits_is_written_over_one_with_fewer(tmp_path: Path) -> None:
    log = written(tmp_path, 9)
    for number in (10, 11):
        assert log.append("key-0", "phases.start").seq == number
        assert log.path.with_suffix(".head").read_bytes() == f"{log.head()}\n".encode()


def test_a_head_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path)
    monkeypatch.setattr(os, "pwrite", lambda *_: 5)
    with pytest.raises(StorageError, match=r"disk full while writing .*audit\.head"):
        log.append("key-0", "phases.start")


def test_a_reader_that_meets_a_head_in_the_middle_of_a_write_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(tmp_path)
    whole = log.path.with_suffix(".head").read_bytes()
    reads = iter([whole[:20], whole])
    monkeypatch.setattr(Path, "read_bytes", lambda _self: next(reads))
    assert audit.stored_head(log.path) == Head.parse(whole.decode())


def test_writers_of_several_processes_keep_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=append_many, args=(path, f"w{i}", 20)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert verify(path).intact
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [record["seq"] for record in records] == list(range(1, 61))
    for name in ("w0", "w1", "w2"):
        assert [r["target"] for r in records if r["actor"] == name] == [str(i) for i in range(20)]


KILLED = """
import sys
from agent_forge.server.audit import AuditLog
log = AuditLog(sys.argv[1])
print("ready", flush=True)
while True:
    print(log.append("key-0", "count").seq, flush=True)
"""


def test_a_killed_writer_loses_no_acknowledged_record(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    acknowledged = 0
    for stop_after in (1, 7, 20):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for line in child.stdout:
                if line.strip() != "ready":
                    acknowledged, stop_after = int(line), stop_after - 1
                if not stop_after:
                    child.kill()
                    break
            rest = [int(line) for line in child.stdout.read().split()]
        acknowledged = max([acknowledged, *rest])
        head = AuditLog(path).append("key-1", "after the kill")
        assert head.seq > acknowledged
        assert verify(path).intact


def test_rotated_segments_are_one_chain(tmp_path: Path) -> None:
    log = written(tmp_path, 9, rotate_bytes=700)
    files = audit.segments(log.path)
    assert len(files) > 2
    assert files[-1] == log.path
    assert verify(log.path).records == 9
    for earlier, later in pairwise(files):
        first, last = later.read_bytes().splitlines()[0], earlier.read_bytes().splitlines()[-1]
        assert json.loads(first)["previous"] == json.loads(last)["mac"]
    files[1].unlink()
    assert not verify(log.path).intact


def test_segments_that_were_moved_elsewhere_are_stood_for_by_their_last_head(
    tmp_path: Path,
) -> None:
    log = written(tmp_path, 9, rotate_bytes=700)
    first = audit.segments(log.path)[0]
    record = json.loads(first.read_bytes().splitlines()[-1])
    first.unlink()
    assert not verify(log.path).intact
    assert verify(log.path, start=Head(record["seq"], record["mac"])).intact


def test_a_head_is_given_to_a_command_and_a_command_that_fails_is_told(tmp_path: Path) -> None:
    file = tmp_path / "heads"
    log = AuditLog(tmp_path / "audit.jsonl", heads=[CommandHeads(["sh", "-c", f"cat >> {file}"])])
    head = log.append("key-0", "phases.start")
    assert audit.read_heads(file.read_text()) == [head]
    log.heads = [CommandHeads(["false"])]
    with pytest.raises(StorageError, match="could not be given to false"):
        log.append("key-0", "phases.start")
    assert verify(log.path).records == 2


def test_text_of_an_attacker_stays_inside_of_one_record(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.append('a"\n{"seq":2}', "x\r\n", "\u2028\ud800", {"k\n": "\x00"})
    assert len(lines_of(log)) == 1
    assert verify(log.path).intact


def test_details_are_bounded_and_must_be_json(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    with pytest.raises(ConfigError, match="longer than"):
        log.append("a", "b", "c", {"body": "x" * 20000})
    with pytest.raises(ValueError, match="Out of range float"):
        log.append("a", "b", "c", {"nan": float("nan")})
    assert not log.path.exists()


def test_the_key_comes_from_the_environment_first_and_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(audit.KEY_VARIABLE, "ab" * 32)
    log = written(tmp_path, 1)
    assert not log.path.with_suffix(".key").exists()
    assert verify(log.path).intact
    monkeypatch.setenv(audit.KEY_VARIABLE, "ab" * 8)
    with pytest.raises(ConfigError, match="32 bytes or more"):
        AuditLog(log.path)
    monkeypatch.delenv(audit.KEY_VARIABLE)
    with pytest.raises(AuditError, match="has no key"):
        AuditLog(log.path)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    log = written(tmp_path, 1)
    log.path.with_suffix(".key").chmod(0o644)
    with pytest.raises(AuditError, match="chmod 600"):
        AuditLog(log.path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        AuditLog(tmp_path / "file" / "audit.jsonl")


# The middleware, under an application that only answers.


async def answer(scope: dict, receive: object, send: Callable) -> None:
    del receive
    status = {"/wrong": 401}.get(scope["path"], 200)
    if status == 200:
        scope["state"]["actor"] = "key-7"
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


def requested(log: AuditLog, method: str, path: str) -> list[dict[str, Any]]:
    """Return the messages that a client receives."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "query_string": b"key=secret",
        "client": ("127.0.0.1", 5), "headers": [],
    }  # fmt: skip
    asyncio.run(AuditMiddleware(answer, log)(scope, receive, send))
    return sent


def test_requests_that_change_something_or_are_refused_are_recorded(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    for method, path in (("GET", "/list"), ("POST", "/start"), ("GET", "/wrong")):
        assert requested(log, method, path)[-1]["body"] == b"done"
    records = [json.loads(line) for line in lines_of(log)]
    assert [(r["actor"], r["action"], r["target"], r["detail"]["status"]) for r in records] == [
        ("key-7", "POST", "/start", 200), ("anonymous", "GET", "/wrong", 401),
    ]  # fmt: skip
    assert b"secret" not in log.path.read_bytes()


def test_a_request_that_cannot_be_recorded_is_answered_with_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")

    def fail(*_: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(log, "append", fail)
    start, body = requested(log, "POST", "/start")
    assert start["status"] == 503
    assert b"audit log" in body["body"]


# The command.


def test_the_command_verifies_prints_the_head_and_exits_74_for_a_changed_log(
    tmp_path: Path, forge: Callable
) -> None:
    log = written(tmp_path, 3)
    head = forge("audit", "head", str(log.path))
    assert Head.parse(head.stdout) == log.head()
    heads = tmp_path / "heads.txt"
    heads.write_text(head.stdout)
    whole = forge("audit", "verify", str(log.path), "--head", str(heads))
    assert whole.returncode == 0
    assert "3 records, 1 heads from elsewhere" in whole.stdout
    log.path.write_bytes(b"".join(lines_of(log)[:-1]))
    cut = forge("audit", "verify", str(log.path), "--head", head.stdout.strip(), "--json")
    assert cut.returncode == 74
    assert json.loads(cut.stdout)["intact"] is False
    assert "was changed" in cut.stderr


def test_a_missing_log_and_a_wrong_head_are_one_line(tmp_path: Path, forge: Callable) -> None:
    missing = forge("audit", "verify", str(tmp_path / "audit.jsonl"))
    assert (missing.returncode, len(missing.stderr.splitlines())) == (74, 1)
    with pytest.raises(ForgeError, match="NUMBER:MAC"):
        Head.parse("7:zz")


def test_the_server_package_needs_no_extra_for_the_log() -> None:
    code = "import agent_forge.server.audit, sys; print([m for m in sys.modules if m in BAD])"
    code = code.replace("BAD", "('torch', 'fastapi', 'starlette', 'numpy')")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
