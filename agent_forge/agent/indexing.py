"""Build a document index: read files, cut them into overlapping passages, keep what did not change.

Reads files and folders of text (or a packaged text, as data.text names it); writes one SQLite file
that `forge chat --documents`, bake and the tools `search` and `retrieve` read. A file whose content
has the hash that the index knows is passed over; a file is indexed whole or not at all, so a build
that was stopped goes on where it was; a file that is gone from a named folder leaves the index.
"""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from agent_forge.agent.documents import DocumentIndex
from agent_forge.agent.store import Store
from agent_forge.core.errors import ConfigError, DataError, StorageError
from agent_forge.core.events import EventLog
from agent_forge.data.documents import row_text
from agent_forge.data.files import ROW_SUFFIXES, UTF8, decode, rows_of
from agent_forge.data.indexes import is_index
from agent_forge.data.packaged import PACKAGES, files_of

PLAIN = (
    ".txt", ".md", ".rst", ".org", ".adoc", ".tex", ".csv", ".tsv", ".log", ".py", ".pyi", ".c",
    ".h", ".cc", ".cpp", ".hpp", ".rs", ".go", ".java", ".kt", ".js", ".ts", ".jsx", ".tsx", ".sh",
    ".sql", ".toml", ".yaml", ".yml", ".ini", ".cfg",
)  # fmt: skip
HTML = (".html", ".htm", ".xhtml")
KINDS = (*PLAIN, *HTML, *ROW_SUFFIXES)
PASSAGE_WORDS, OVERLAP_WORDS = 80, 16


@dataclass(slots=True)
class IndexReport:
    """What one build did, in files. refused: one line per file that could not be read."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    passages: int = 0  # what the whole index holds now
    unknown: dict[str, int] = field(default_factory=dict)  # suffix -> files of an unknown kind
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Document:
    """One file, the name that results show, and the package that it belongs to ("" for none)."""

    file: Path
    shown: str
    package: str = ""

    @property
    def path(self) -> str:
        """Return the absolute path, by which the index knows the file."""
        return os.path.abspath(self.file)


def build(
    sources: Sequence[str],
    out: Path,
    *,
    events: EventLog,
    encoding: str = UTF8,
    passage_words: int = PASSAGE_WORDS,
    overlap_words: int = OVERLAP_WORDS,
) -> IndexReport:
    """Bring the index `out` up to date with files, folders and packages.

    Files that cannot be read are named in the report, the others are indexed. Raises DataError for
    a source that does not exist, ConfigError where the overlap leaves no new words, StorageError
    where `out` is not an index or cannot be written.
    """
    if not 0 <= overlap_words < passage_words:
        raise ConfigError(
            f"the overlap must be at least 0 and below the {passage_words} words of a passage, got "
            f"{overlap_words}"
        )
    if out.exists() and out.stat().st_size and not is_index(out):
        raise StorageError(f"{out} is not an index; name another file with --out")
    report = IndexReport()
    documents, roots = _documents(sources, out, report)
    index = DocumentIndex(Store(out, mode=0o644), passage_words, overlap_words)
    try:
        settings = f"{encoding} {passage_words} {overlap_words}"
        for number, document in enumerate(documents, start=1):
            _bring_up_to_date(index, document, settings, encoding, report)
            events.progress("files", number, len(documents))
        _remove_missing(index.store, {document.path for document in documents}, roots, report)
        report.passages = len(index)
    finally:
        index.store.close()
    return report


def _documents(
    sources: Sequence[str], out: Path, report: IndexReport
) -> tuple[list[_Document], list[str]]:
    """Return the documents of all sources, in order, and the folders that were looked into."""
    documents: dict[str, _Document] = {}
    roots, unknown = [], Counter[str]()
    own = {Path(f"{out}{end}").resolve() for end in ("", "-wal", "-shm", ".lock")}
    for source in sources:
        if Path(source).is_dir():
            roots.append(f"{os.path.abspath(source).rstrip(os.sep)}{os.sep}")
        for document in _of_source(source):
            if document.file.resolve() in own:
                continue
            suffix = document.file.suffix.lower()
            if document.package or suffix in KINDS:
                documents.setdefault(document.path, document)
            else:
                unknown[suffix or document.file.name] += 1
    report.unknown = dict(sorted(unknown.items()))
    return [documents[path] for path in sorted(documents)], roots


def _of_source(source: str) -> Iterator[_Document]:
    place = Path(source)
    if place.is_dir():
        base = Path(os.path.abspath(place))
        for file in _walk(place):
            yield _Document(file, f"{base.name}/{Path(os.path.abspath(file)).relative_to(base)}")
    elif place.is_file():
        yield _Document(place, place.name)
    elif source in PACKAGES:
        yield from (_Document(file, f"{source}/{file.name}", source) for file in files_of(source))
    else:
        known = ", ".join(PACKAGES)
        raise DataError(f"'{source}' is neither a file, a folder, nor a package ({known})")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder in order, hidden ones left out.

    Raises DataError where a folder may not be looked into.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename}: {error.strerror}; change its permissions")

    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _bring_up_to_date(
    index: DocumentIndex, document: _Document, settings: str, encoding: str, report: IndexReport
) -> None:
    """Index one document unless its content and the settings are those that the index knows."""
    store = index.store
    try:
        content = document.file.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        known = store.rows("SELECT sha256, settings FROM files WHERE path = ?", document.path)
        if known == [(digest, settings)]:
            report.unchanged += 1
            return
        texts = list(_texts(document, content, encoding))
    except OSError as error:
        report.refused.append(f"cannot read {document.file}: {error.strerror}")
        return
    except DataError as error:
        report.refused.append(str(error))
        return
    with store.transaction():
        _remove(store, document.path)
        ((last,),) = store.rows("SELECT COALESCE(MAX(id), 0) FROM passages")
        count = sum(index.insert(text, f"{document.shown}{mark}") for mark, text in texts)
        store.change(
            "INSERT INTO files(path, sha256, bytes, settings, first, passages, time) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            document.path, digest, len(content), settings, last + 1, count, time.time(),
        )  # fmt: skip
    report.changed += bool(known)
    report.added += not known


def _texts(document: _Document, content: bytes, encoding: str) -> Iterator[tuple[str, str]]:
    """Yield (mark, text) of the texts in a file: one, or one per row (mark `#number`)."""
    file, suffix = document.file, document.file.suffix.lower()
    if document.package:
        yield "", PACKAGES[document.package].read(file)
    elif suffix in ROW_SUFFIXES:
        for number, row in enumerate(rows_of(file, encoding), start=1):
            try:
                text = row_text(row)
            except DataError as error:
                raise DataError(f"{file}, row {number}: {error}") from None
            if text:
                yield f"#{number}", text
    else:
        text = decode(content, file, encoding).replace("\r\n", "\n").replace("\r", "\n")
        yield "", _html_text(text) if suffix in HTML else text


class _Text(HTMLParser):
    """Collects the text of a page; what scripts and styles hold is not text."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self.depth += tag in ("script", "style")
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag in ("script", "style") and self.depth > 0
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(data)


def _html_text(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    parser.close()
    return "".join(parser.parts)


def _remove(store: Store, path: str) -> None:
    """Take a file and its passages out of the index."""
    for first, count in store.rows("SELECT first, passages FROM files WHERE path = ?", path):
        with store.transaction():
            store.hide("passages", range(first, first + count))
            store.change("DELETE FROM passages WHERE id BETWEEN ? AND ?", first, first + count - 1)
            store.change("DELETE FROM files WHERE path = ?", path)


def _remove_missing(
    store: Store, present: set[str], roots: Sequence[str], report: IndexReport
) -> None:
    """Take out files below the named folders that are not there any more."""
    for (path,) in store.rows("SELECT path FROM files"):
        if path not in present and any(path.startswith(root) for root in roots):
            _remove(store, path)
            report.removed += 1
