"""What people give by mistake, and the spellings that they expect to work: one line that names file, row and remedy."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import rows
from agent_forge.data.documents import check_source, read_source, row_text
from agent_forge.data.inspection import inspect_rows
from agent_forge.data.tokenizer import train_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("turn.jsonl", '{"messages": ["hi"]}', r"turn\.jsonl, row 1: turn 1: a turn is an object .*, got a str"),
        ("none.jsonl", '{"messages": []}', r"row 1: a conversation without a turn"),
        ("list.jsonl", "[1]", r"list\.jsonl:1: a row is a JSON object with named fields, got a list"),
        ("list.json", "[3]", r"list\.json, row 1: a row is a JSON object"),
        ("one.json", '{"a": 1}', r"one\.json: a list of rows is expected, got one dict"),
        ("cut.json", "[", r"cut\.json: not JSON"),
        ("empty.jsonl", "", r"empty\.jsonl holds no row"),
        ("column.jsonl", '{"foo": 1}', r"column\.jsonl, row 1: a row with the keys \['foo'\] is no conversation; known:"),
        ("picture.jsonl", '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', r"content of type list"),
        ("call.jsonl", '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}', "no JSON"),
        ("rows.csv", "a,b", r"rows\.csv' is of another kind; give a \.jsonl"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        rows.read([str(tmp_path / name)], "train")
    with pytest.raises(DataError, match=message):  # and before a long job begins
        rows.check_source(str(tmp_path / name))


def test_a_missing_file_and_a_folder_without_rows_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        rows.check_source(str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match=r"no \.jsonl, \.json, \.parquet file under it"):
        rows.check_source(str(tmp_path))


@contextmanager
def without_rights() -> Iterator[None]:
    """Give up the rights of root while the block runs."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("read", [check_source, rows.check_source])
def test_a_folder_or_file_without_permission_is_named(read: Any) -> None:
    # Not tmp_path: pytest's folders are closed to anybody else.
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder, file = Path(place) / "folder", Path(place) / "file.jsonl"
        file.write_text(json.dumps({"messages": CHAT}))
        folder.mkdir()
        for closed in (folder, file):
            closed.chmod(0o000)
            with without_rights(), pytest.raises(DataError, match=rf"cannot read {closed}: Permission denied"):
                read(str(closed))


def test_a_json_list_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "add", "output": "3"}]))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": CHAT}).encode())
    assert [turns for _, turns in rows.conversations(str(tmp_path))] == [
        [{"role": "user", "content": "add"}, {"role": "assistant", "content": "3"}], CHAT,
    ]  # fmt: skip
    assert list(read_source(str(tmp_path / "a.json"))) == ["add\n3"]


def test_text_parts_and_tool_calls_become_the_text_that_is_trained(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "calculator", "arguments": '{"expression": "1+2"}'}}
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+2?"}]},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3"},
        ]
    }
    (tmp_path / "calls.jsonl").write_text(json.dumps(row))
    ((_, turns),) = rows.conversations(str(tmp_path / "calls.jsonl"))
    assert [turn["content"] for turn in turns] == [
        "What is 1+2?", '<tool_call>{"name": "calculator", "arguments": {"expression": "1+2"}}</tool_call>',
        "<tool_response>3</tool_response>",
    ]  # fmt: skip


def test_sharegpt_rows_are_text_too() -> None:
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert row_text(row) == "hi\nhello"


def test_a_role_that_no_turn_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(ConfigError, match="no turn ever has the role robot"):
        inspect_rows([str(tmp_path / "a.jsonl")], train_tokenizer([], 264), 0, ["user", "robot"])
