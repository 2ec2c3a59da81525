"""Read text and rows from files; what cannot be decoded is refused with file, line and byte.

Reads .txt, .md, .jsonl, .json and .parquet files, folders of them, and `hf:<data set>`. Text is
UTF-8, with or without a byte-order mark, unless `data.encoding` names another encoding; nothing is
ever replaced or skipped.
"""

import codecs
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agent_forge.core.errors import DataError

ROW_SUFFIXES = (".jsonl", ".json", ".parquet")
SUFFIXES = (".txt", ".md", *ROW_SUFFIXES)
UTF8 = "utf-8"
# levels of objects and lists inside one another in a row; dialects of chats have fewer than ten
MOST_LEVELS = 64
# A mark of four bytes is tried before the mark of two bytes that it begins with.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
# What compressed files begin with; no text does.
_COMPRESSED = {
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"\xfd7zX": "xz", b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def read_rows(name: str, encoding: str = UTF8) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("FILE, row N", row) for a .jsonl, .json or .parquet file, a folder of them, or
    hf:<data set>.

    A field that is null is left out, at every depth: tables store nulls where other formats store
    nothing. Raises DataError for anything else, and for a file without a row.
    """
    path = Path(name)
    if name.startswith("hf:"):
        for number, row in enumerate(hub_rows(name.removeprefix("hf:")), start=1):
            yield f"{name}, row {number}", row
        return
    if path.is_dir():
        files = files_under(path, ROW_SUFFIXES)
        if not files:
            raise DataError(f"data.rows={name}: no {', '.join(ROW_SUFFIXES)} file under it")
    elif path.is_file() and path.suffix.lower() in ROW_SUFFIXES:
        files = [path]
    else:
        what = "is of another kind" if path.exists() else "does not exist"
        raise DataError(
            f"data.rows: '{name}' {what}; give a {', '.join(ROW_SUFFIXES)} file, a folder of them, "
            "or hf:<data set>"
        )
    for file in files:
        number = 0
        for number, row in enumerate(rows_of(file, encoding), start=1):
            yield f"{file}, row {number}", row
        if not number:
            raise DataError(f"{file} holds no row; remove it or give rows")


def files_under(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the readable kinds of file under `folder`.

    Raises DataError where a folder may not be looked into.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; change its permissions or name "
            "another source"
        )

    # Not rglob: it passes over folders without permission and says nothing.
    paths = [
        Path(place) / name for place, _, names in os.walk(folder, onerror=refuse) for name in names
    ]
    return sorted(path for path in paths if path.suffix.lower() in suffixes and path.is_file())


def rows_of(file: Path, encoding: str = UTF8) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file, without their nulls. Raises DataError naming it."""
    if file.suffix.lower() == ".parquet":
        rows = _parquet_rows(file)
    else:
        rows = (_jsonl_rows if file.suffix.lower() == ".jsonl" else _json_rows)(file, encoding)
    try:
        yield from map(without_nulls, rows)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def read_text(file: Path, encoding: str = UTF8) -> str:
    """Return a file's text, with line ends as `\\n`.

    Raises DataError naming the byte that cannot be decoded.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None
    return decode(content, file, encoding).replace("\r\n", "\n").replace("\r", "\n")


def decode(content: bytes, file: Path, encoding: str = UTF8) -> str:
    """Return the text of all of a file's bytes, without a byte-order mark. Raises DataError."""
    _refuse_other_mark(content[:4], file, encoding)
    return _decoded(content, file, encoding, 0, 1)


def hub_rows(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Hugging Face data set, without their nulls.

    Raises DataError when it cannot be had.
    """
    try:
        import datasets
    except ImportError:
        raise DataError(
            f"hf:{name} needs the datasets package; pip install 'agent-forge[data]'"
        ) from None
    try:
        loaded = datasets.load_dataset(*name.split(":", 1), split="train")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"hf:{name} cannot be read ({reason}); check the name and the network, or use a file"
        ) from None
    for row in loaded:
        yield without_nulls(dict(row))


def without_nulls(value: Any) -> Any:
    """Return a JSON value without its null (or NaN) fields, at every depth; lists keep theirs."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if not _is_null(item)}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _is_null(value: object) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _refuse_other_mark(head: bytes, file: Path, encoding: str) -> None:
    """Raise DataError when a file begins with the byte-order mark of another encoding, or as a
    compressed file does.
    """
    for start, name in _COMPRESSED.items():
        if head.startswith(start):
            raise DataError(f"{file} is compressed ({name}); unpack it first")
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            if not codecs.lookup(encoding).name.startswith(name):
                raise DataError(
                    f"{file}: byte 0: it begins with the byte-order mark of {name.upper()}, not of "
                    f"{encoding}; "
                    f"save it as UTF-8 or set data.encoding={name}"
                )
            return


def _decoded(content: bytes, file: Path, encoding: str, offset: int, line: int) -> str:
    """Return the text of bytes that begin at `offset` of a file, in its line `line`."""
    head = (
        len(codecs.BOM_UTF8)
        if offset == 0 and content.startswith(codecs.BOM_UTF8) and _is_utf8(encoding)
        else 0
    )
    try:
        text = content[head:].decode(encoding)
    except UnicodeDecodeError as error:
        place = head + error.start
        line += content.count(b"\n", 0, place)
        raise DataError(
            f"{file}: byte {offset + place} (line {line}) is not {encoding} "
            f"(0x{content[place]:02x}: {error.reason}); "
            f"save the file as UTF-8 or name its encoding, for instance data.encoding=latin-1"
        ) from None
    if (place := text.find("\0")) >= 0:
        at = offset + head + len(text[:place].encode(encoding))
        raise DataError(
            f"{file}: byte {at} is NUL, which no text holds; "
            "a file in UTF-16 without a byte-order mark needs data.encoding=utf-16-le (or -be)"
        )
    return text


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == UTF8


def _lines(file: Path, encoding: str) -> Iterator[tuple[int, int, str]]:
    """Yield (number, byte offset, text) of each line.

    A file whose line ends are single bytes is never read whole.
    """
    if codecs.lookup(encoding).name.startswith(("utf-16", "utf-32")):
        for number, text in enumerate(
            decode(file.read_bytes(), file, encoding).split("\n"), start=1
        ):
            yield number, 0, text
        return
    offset = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1:
                _refuse_other_mark(line[:4], file, encoding)
            yield number, offset, _decoded(line, file, encoding, offset, number)
            offset += len(line)


def _jsonl_rows(file: Path, encoding: str) -> Iterator[dict[str, Any]]:
    for number, offset, line in _lines(file, encoding):
        if not line.strip():
            continue
        try:
            row = _parsed(line, f"{file}:{number}")
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", None) or str(error)
            raise DataError(
                f"{file}:{number}: not JSON ({reason}); one JSON object a line is expected"
            ) from None
        _refuse_lone_surrogate(line, f"{file}:{number}", offset)
        yield _object(row, f"{file}:{number}")


def _json_rows(file: Path, encoding: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that is one JSON list."""
    text = decode(file.read_bytes(), file, encoding)
    try:
        content = _parsed(text, str(file))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file}: not JSON ({error}); rows on lines of their own belong in a .jsonl file"
        ) from None
    _refuse_lone_surrogate(text, str(file), 0)
    if not isinstance(content, list):
        raise DataError(f"{file}: a list of rows is expected, got one {type(content).__name__}")
    for number, row in enumerate(content, start=1):
        yield _object(row, f"{file}, row {number}")


def _parsed(text: str, where: str) -> Any:
    """Return the value of a JSON text.

    Raises DataError when an object has a key twice: one of the two would be dropped.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{where}: the key '{twice}' stands twice in one object; keep one of them"
            )
        return entries

    return json.loads(text, object_pairs_hook=unique)


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: a row is a JSON object with named fields, got a {type(row).__name__}"
        )
    if _deeper(row, MOST_LEVELS):
        raise DataError(
            f"{where}: more than {MOST_LEVELS} objects and lists inside one another; flatten the "
            "row"
        )
    return row


def _deeper(value: object, levels: int) -> bool:
    """Return whether a JSON value has more than `levels` levels of objects and lists."""
    if not isinstance(value, (dict, list)):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner)


def _refuse_lone_surrogate(text: str, where: str, offset: int) -> None:
    """Raise DataError when a JSON text escapes half of a surrogate pair: it stands for no
    character.

    offset: where the text begins in its file, in bytes.
    """
    if "\\u" not in text:
        return
    high: re.Match[str] | None = None
    lone: re.Match[str] | None = None
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else 0
        follows = high is not None and high.end() == escape.start()
        if 0xDC00 <= code < 0xE000 and follows:
            high = None
            continue
        lone = high if high is not None else (escape if 0xDC00 <= code < 0xE000 else None)
        if lone is not None:
            break
        high = escape if 0xD800 <= code < 0xDC00 else None
    lone = lone or high
    if lone is not None:
        place = offset + len(text[: lone.start()].encode())
        line = text.count("\n", 0, lone.start()) + 1
        at = where if offset or line == 1 else f"{where}:{line}"
        raise DataError(
            f"{at}: byte {place}: {lone[0]} is half of a surrogate pair and stands for no "
            "character; "
            "write the character itself, or remove the escape"
        )


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(
            f"{file}: reading parquet needs pyarrow; pip install 'agent-forge[data]'"
        ) from None
    from pyarrow.lib import ArrowException

    try:
        # One row group at a time, because the file may be larger than the memory.
        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no readable parquet file ({error}); write it again") from None
