"""What people give by mistake, and the spellings that they expect to work: one line that names
file, row and remedy.
"""

import gzip
import json
import lzma
import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import files, rows
from agent_forge.data.documents import check_source, read_source, row_text
from agent_forge.data.inspection import inspect_rows
from agent_forge.data.tokenizer import train_tokenizer

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("turn.jsonl",
         '{"messages": ["hi"]}', r"turn\.jsonl, row 1: turn 1: a turn is an object .*, got a str"),
        ("none.jsonl", '{"messages": []}', r"row 1: a conversation without a turn"),
        ("list.jsonl",
         "[1]", r"list\.jsonl:1: a row is a JSON object with named fields, got a list"),
        ("list.json", "[3]", r"list\.json, row 1: a row is a JSON object"),
        ("one.json", '{"a": 1}', r"one\.json: a list of rows is expected, got one dict"),
        ("cut.json", "[", r"cut\.json: not JSON"),
        ("empty.jsonl", "", r"empty\.jsonl holds no row"),
        ("column.jsonl",
         '{"foo": 1}',
         r"column\.jsonl, row 1: a row with the keys \['foo'\] is no conversation; known:"),
        ("picture.jsonl",
         '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
         r"turn 1 has content in parts of type image; text alone is learned"),
        ("call.jsonl",
         '{"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}',
         "no JSON"),
        ("rows.csv", "a,b", r"rows\.csv' is of another kind; give a \.jsonl"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        rows.read([str(tmp_path / name)], "train")
    with pytest.raises(DataError, match=message):  # The same holds before a long job begins.
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
            with (
                without_rights(),
                pytest.raises(DataError, match=rf"cannot read {closed}: Permission denied"),
            ):
                read(str(closed))


def test_a_json_list_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"instruction": "add", "output": "3"}]))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"messages": CHAT}).encode())
    assert [turns for _, turns in rows.conversations(str(tmp_path))] == [
        [{"role": "user", "content": "add"}, {"role": "assistant", "content": "3"}], CHAT,
    ]  # fmt: skip
    assert list(read_source(str(tmp_path / "a.json"))) == ["add\n3"]


def test_text_parts_and_tool_calls_become_the_text_that_is_trained(tmp_path: Path) -> None:
    call = {
        "type": "function",
        "function": {"name": "calculator", "arguments": '{"expression": "1+2"}'},
    }
    row = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "1+2?"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "3"},
        ]
    }
    (tmp_path / "calls.jsonl").write_text(json.dumps(row))
    ((_, turns),) = rows.conversations(str(tmp_path / "calls.jsonl"))
    assert [turn["content"] for turn in turns] == [
        "What is 1+2?",
        '<tool_call>{"name": "calculator", "arguments": {"expression": "1+2"}}</tool_call>',
        "<tool_response>3</tool_response>",
    ]  # fmt: skip


def test_sharegpt_rows_are_text_too() -> None:
    row = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
    assert row_text(row) == "hi\nhello"


def test_a_role_that_no_turn_has_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(ConfigError, match="no turn ever has the role robot"):
        inspect_rows([str(tmp_path / "a.jsonl")], train_tokenizer([], 264), 0, ["user", "robot"])


LATIN = "Grüße, Señor".encode("latin-1")
NO_TEXT = bytes([0x41, 0x0A, 0xFF, 0x12, 0x80, 0xC3])


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ok\n" + LATIN, r"byte 5 \(line 2\) is not utf-8 \(0xfc.*data\.encoding=latin-1"),
        (NO_TEXT, r"byte 2 \(line 2\) is not utf-8 \(0xff"),
        ("text".encode("utf-16"), "byte-order mark of UTF-16, not of utf-8.*data.encoding=utf-16"),
        ("text".encode("utf-32"), "byte-order mark of UTF-32"),
        ("text".encode("utf-16-le"), r"byte 1 is NUL.*data\.encoding=utf-16-le"),
    ],
    ids=["latin-1", "random", "utf-16", "utf-32", "utf-16 without a mark"],
)  # fmt: skip
def test_bytes_that_are_no_utf8_are_refused_with_their_place(
    tmp_path: Path, suffix: str, content: bytes, message: str
) -> None:
    file = tmp_path / f"a{suffix}"
    # the first line must be JSON to get further
    if suffix == ".jsonl" and content.startswith((b"ok\n", b"A\n")):
        content = content.replace(b"ok", b"{}", 1).replace(b"A\n", b"1\n", 1)
        message = message if content.startswith(b"{") else "row is a JSON object"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        list(read_source(str(file)))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "latin-1", "cp1252", "utf-16", "utf-16-be", "utf-32", "gb18030"]
)
def test_a_named_encoding_is_followed_everywhere(tmp_path: Path, encoding: str) -> None:
    text = "Grüße"
    (tmp_path / "a.txt").write_bytes(f"{text}\r\nzwei".encode(encoding))
    assert list(read_source(str(tmp_path / "a.txt"), encoding)) == [f"{text}\nzwei"]
    row = json.dumps({"instruction": text, "output": "ja"}, ensure_ascii=False)
    (tmp_path / "b.jsonl").write_bytes(f"{row}\n{row}\n".encode(encoding))
    (tmp_path / "c.json").write_bytes(f"[{row}]".encode(encoding))
    for name, count in (("b.jsonl", 2), ("c.json", 1)):
        turns = [turns for _, turns in rows.conversations(str(tmp_path / name), encoding=encoding)]
        assert [one[0]["content"] for one in turns] == [text] * count


@pytest.mark.parametrize(
    ("line", "byte"),
    [
        (r'{"text": "a\ud800"}',
         11), (r'{"text": "\udc00\ud83d\ude00"}', 10), (r'{"text": "\ud83d\ud83d\ude00"}', 10),
        (r'{"text": "é\\\udbff x"}', 14), (r'{"\ud800": 1}', 2),
    ],
)  # fmt: skip
def test_half_a_surrogate_pair_is_refused_with_its_line_and_byte(
    tmp_path: Path, line: str, byte: int
) -> None:
    first = json.dumps({"text": r"fine \ud800, as it is no escape 😀"}) + "\n"
    (tmp_path / "a.jsonl").write_text(first + line + "\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"a\.jsonl:2: byte {len(first) + byte}: \\u.* is half of a surrogate pair"
    ) as caught:
        list(read_source(str(tmp_path / "a.jsonl")))
    assert "\n" not in str(caught.value)
    (tmp_path / "a.json").write_text(f"[{first},{line}]", encoding="utf-8")
    with pytest.raises(DataError, match=r"half of a surrogate pair"):
        list(read_source(str(tmp_path / "a.json")))
    (tmp_path / "a.jsonl").write_text(first, encoding="utf-8")
    assert list(read_source(str(tmp_path / "a.jsonl"))) == [r"fine \ud800, as it is no escape 😀"]


def test_a_row_of_text_that_is_of_no_kind_is_named_and_one_marked_out_is_left_out(
    tmp_path: Path,
) -> None:
    lines = [{"text": "yes"}, {"text": "no", "weight": 0}, {"text": None, "id": 3}, {"txt": "typo"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines[:3])))
    assert list(read_source(str(tmp_path / "a.jsonl"))) == ["yes"]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(
        DataError, match=r"a\.jsonl, row 4: no usable row; .*it has the keys \['txt'\]"
    ):
        list(read_source(str(tmp_path / "a.jsonl")))


def test_an_encoding_that_does_not_exist_is_a_setting_to_mend(tmp_path: Path) -> None:
    from agent_forge.config.limits import Encoding

    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": CHAT}))
    with pytest.raises(ConfigError, match=r"--encoding must be a text encoding.*got 'utf-9'"):
        inspect_rows([str(tmp_path / "a.jsonl")], train_tokenizer([], 264), 0, encoding="utf-9")
    assert [Encoding().wrong(name) for name in ("utf-8", "utf-16", "hex", "utf-9", "")] == [
        False,
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"text": "a", "text": "b"}', r"a\.jsonl:1: the key 'text' stands twice in one object"),
        (
            '{"messages": [{"role": "user", "role": "assistant", "content": "x"}]}',
            "the key 'role' stands twice",
        ),
        (
            '{"text": "a", "meta": ' + '{"a": ' * 800 + "1" + "}" * 801,
            "more than 64 objects and lists inside one another",
        ),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_row_that_would_lose_a_key_or_never_ends_is_refused(
    tmp_path: Path, row: str, message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(row + "\n", encoding="utf-8")
    for read in (read_source, rows.conversations):
        with pytest.raises(DataError, match=message):
            list(read(str(tmp_path / "a.jsonl")))
    (tmp_path / "a.json").write_text(f"[{row}]", encoding="utf-8")
    with pytest.raises(DataError, match=message.replace(r"a\.jsonl:1", r"a\.json")):
        list(read_source(str(tmp_path / "a.json")))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "text.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_compressed_file_under_the_name_of_text_is_called_that(
    tmp_path: Path, name: str, encoding: str
) -> None:
    """Another encoding, which other bytes are answered with, would train on bytes that hold no text."""
    content = b'{"messages": [{"role": "user", "content": "a"}]}\n'
    file = tmp_path / name
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("rows", content)
    for kind, packed in (
        ("gzip", gzip.compress(content)), ("xz", lzma.compress(content)),
        ("zip", (tmp_path / "z").read_bytes()),
    ):  # fmt: skip
        file.write_bytes(packed)
        with pytest.raises(DataError) as caught:
            list(read_source(str(file), encoding))
        assert str(caught.value) == f"{file} is compressed ({kind}); unpack it first"


def test_the_kind_of_a_file_may_be_written_in_capitals(tmp_path: Path) -> None:
    file = tmp_path / "ROWS.JSONL"
    file.write_text('{"text": "a"}\n', encoding="utf-8")
    assert list(files.rows_of(file)) == [{"text": "a"}]
    assert files.files_under(tmp_path) == [file]
