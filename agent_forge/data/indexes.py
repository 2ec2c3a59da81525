"""Read the documents in an index of `forge index`, as a source of text.

Reads one SQLite file: its passages, in the order of their documents. Words that a passage shares
with the one before it are given once; white space is single spaces, as the index keeps it.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from agent_forge.core.errors import DataError

SQLITE_HEAD = b"SQLite format 3\x00"


def is_index(path: Path | str) -> bool:
    """Return whether a path is a SQLite file, as `forge index` writes it, and not text."""
    file = Path(path)
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(len(SQLITE_HEAD)) == SQLITE_HEAD


def documents_in(file: Path) -> Iterator[str]:
    """Yield the text of every document in an index. Raises DataError for another database."""
    sql = (
        # CROSS JOIN lets SQLite go from file to file, and not through all files per passage.
        "SELECT passages.document, passages.content, files.settings FROM files CROSS JOIN passages "
        "ON passages.id BETWEEN files.first AND files.first + files.passages - 1 "
        "ORDER BY files.first, passages.id"
    )
    try:
        connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)
        try:
            name, words = "", list[str]()
            for document, content, settings in connection.execute(sql):
                if document != name and words:
                    yield " ".join(words)
                if document != name:
                    name, words = document, []
                words += _new_words(words, content.split(), int(settings.rpartition(" ")[2]))
            if words:
                yield " ".join(words)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise DataError(
            f"{file} is not an index of documents ({error}); `forge index` writes one"
        ) from None


def _new_words(before: Sequence[str], words: list[str], overlap: int) -> list[str]:
    """Return the words of a passage that the passages before it do not end with."""
    shared = min(overlap, len(before), len(words))
    return words[shared:] if shared and list(before[-shared:]) == words[:shared] else words
