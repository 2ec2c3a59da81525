"""A growing file of events is read from where the last read ended, and a new one from its start."""

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from agent_forge.core import events
from agent_forge.core.events import Event, EventLog, EventReader, read_events


def line(seq: int, attempt: str = "a") -> bytes:
    event = Event(seq=seq, time=float(seq), kind="message", phase="train", attempt=attempt)
    return (json.dumps(asdict(event)) + "\n").encode()


def test_each_event_is_read_once_also_by_a_later_reader(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    reader = EventReader(path)
    assert reader.read() == []
    path.write_bytes(line(1) + line(2))
    assert [event.seq for event in reader.read()] == [1, 2]
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(line(3))
    assert [event.seq for event in EventReader(path, reader.position).read()] == [3]


def test_a_line_that_is_being_written_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1) + line(2)[:20])
    reader = EventReader(path)
    assert [event.seq for event in reader.read()] == [1]
    with path.open("ab") as file:
        file.write(line(2)[20:])
    assert [event.seq for event in reader.read()] == [2]
    assert reader.damaged == 0


def test_a_torn_line_of_a_killed_writer_is_counted_and_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, "train")
    log.message("one")
    log.close()
    with path.open("ab") as file:
        file.write(b'{"seq": 2, "ti')
    reader = EventReader(path)
    again = EventLog(path, "train")
    again.message("two")
    again.close()
    assert [event.message for event in reader.read()] == ["one", "two"]
    assert reader.damaged == 1


def test_a_file_that_took_the_place_of_the_read_one_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(line(1, "first") + line(2, "first"))
    reader = EventReader(path)
    reader.read()
    # Longer than what was read, in the same inode: only its content tells it apart.
    path.write_bytes(b"".join(line(seq, "other") for seq in (1, 2, 3)))
    assert [(event.attempt, event.seq) for event in reader.read()] == [
        ("other", 1), ("other", 2), ("other", 3),
    ]  # fmt: skip
    path.write_bytes(line(1, "third"))
    assert [event.attempt for event in reader.read()] == ["third"]


def test_a_run_that_drops_an_earlier_one_counts_again_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    names = set()
    for _ in range(2):
        log = EventLog(path, "train")
        assert log.emit("message", message="x").seq == 1
        log.close()
        names.add(next(read_events(path)).attempt)
        path.unlink()
    assert len(names) == 2


def test_a_read_costs_what_was_appended_and_not_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line(seq) for seq in range(1, 20_001)))
    reader = EventReader(path)
    began = time.process_time()
    while reader.read():
        pass
    whole = time.process_time() - began
    began = time.process_time()
    for _ in range(20):
        reader.read()
    assert (time.process_time() - began) / 20 < whole / 100


def test_long_files_are_read_in_blocks_and_long_lines_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "READ_BYTES", 64)  # less than a line
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(line(seq) for seq in range(1, 6)))
    assert [event.seq for event in EventReader(path).read()] == [1]
    assert [event.seq for event in read_events(path)] == [1, 2, 3, 4, 5]
