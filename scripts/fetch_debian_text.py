"""Fetch Debian documentation packages and extract clean prose: one JSON row a document, {"source",
"text"}.

Usage: python scripts/fetch_debian_text.py OUT.jsonl [--package NAME]... [--megabytes N] Needs
apt-get and dpkg-deb (any Debian or Ubuntu). Packages are kept beside OUT in deb/. Files are read in
the order of a hash of their names until a package has given N megabytes. A paragraph stays when it
reads like prose: long enough, mostly letters, ends a sentence. Equal paragraphs are kept once.
Licences vary by package; nothing here is shipped.
"""

import argparse
import gzip
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = ("linux-doc-6.1", "python3.11-doc", "postgresql-doc-15", "sqlite3-doc", "perl-doc")
SUFFIXES = (".html", ".htm", ".rst", ".txt", ".pod")
SKIPPED_TAGS = ("script", "style", "pre", "table", "head")
SHORTEST_CHARACTERS, LONGEST_CHARACTERS = 120, 4000
LETTERS = 0.78  # least share of letters and spaces of a paragraph


class Paragraphs(HTMLParser):
    """Collects the text of every <p> outside code, tables and head."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._parts: list[str] | None = None
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        """Open a paragraph, or a region that is not read."""
        if tag in SKIPPED_TAGS:
            self._skipped += 1
        if tag == "p":
            self._close()
            self._parts = []

    def handle_endtag(self, tag: str) -> None:
        """Close what the tag opened."""
        if tag in SKIPPED_TAGS:
            self._skipped = max(0, self._skipped - 1)
        if tag in ("p", "div", "li", "dd", "body"):
            self._close()

    def handle_data(self, data: str) -> None:
        """Keep text inside a paragraph."""
        if self._parts is not None and not self._skipped:
            self._parts.append(data)

    def _close(self) -> None:
        if self._parts:
            self.found.append("".join(self._parts))
        self._parts = None


def paragraphs(path: Path) -> list[str]:
    """Return the paragraphs of a file: of <p> in HTML, between blank lines at the left margin
    elsewhere.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rb") as file:  # type: ignore[operator]
        text = file.read(2_000_000).decode("utf-8", errors="ignore")
    if path.name.removesuffix(".gz").endswith((".html", ".htm")):
        parser = Paragraphs()
        parser.feed(text)
        return parser.found
    return [part for part in re.split(r"\n\s*\n", text) if part[:1].isalpha()]


def prose(paragraph: str) -> str | None:
    """Return the paragraph with plain spaces when it reads like prose, else None."""
    text = re.sub(r"[A-Z]<<*\s?([^<>]*?)\s?>>*", r"\1", paragraph)  # B<bold> of Perl's documents
    text = re.sub(
        r":\w+:`~?([^`<]*)[^`]*`|``?([^`]*)``?", r"\1\2", text
    )  # roles and literals of reStructuredText
    text = re.sub(r"\s+", " ", text).strip().removesuffix("¶")
    if not SHORTEST_CHARACTERS <= len(text) <= LONGEST_CHARACTERS or text[-1] not in ".!?:":
        return None
    letters = sum(c.isalpha() or c == " " for c in text)
    return text if letters >= LETTERS * len(text) and re.search(r"[.] |[.]$", text) else None


def documents(root: Path, package: str, limit_bytes: int) -> Iterator[tuple[str, list[str]]]:
    """Yield (name, paragraphs of prose) of the files below `root`, up to `limit_bytes` of text."""
    files = [
        p for p in root.rglob("*") if p.is_file() and p.name.removesuffix(".gz").endswith(SUFFIXES)
    ]
    names = {p: f"{package}/{p.relative_to(root)}" for p in files if not p.is_symlink()}
    emitted_characters = 0
    for path in sorted(names, key=lambda p: hashlib.sha256(names[p].encode()).digest()):
        texts = [text for text in map(prose, paragraphs(path)) if text]
        if texts:
            yield names[path], texts
            emitted_characters += sum(map(len, texts))
        if emitted_characters >= limit_bytes:
            return


def main() -> int:
    """Download, unpack, extract, write; return an exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--package", action="append", default=[])
    parser.add_argument(
        "--megabytes", type=float, default=1.5, help="of text from each package (default 1.5)"
    )
    args = parser.parse_args()
    cache = args.out.parent / "deb"
    cache.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    rows = []
    for package in args.package or PACKAGES:
        command = ["apt-get", "download", "-q", package]
        if (
            not list(cache.glob(f"{package}_*.deb"))
            and subprocess.run(command, cwd=cache, check=False).returncode
        ):
            print(
                f"apt-get could not download {package}; run `apt-get update`, or name others by --package",
                file=sys.stderr,
            )
            return 74
        with tempfile.TemporaryDirectory() as unpacked:
            subprocess.run(
                ["dpkg-deb", "-x", str(next(cache.glob(f"{package}_*.deb"))), unpacked], check=True
            )
            for name, texts in documents(Path(unpacked), package, int(args.megabytes * 1e6)):
                fresh = [text for text in texts if text not in seen]
                seen.update(fresh)
                if fresh:
                    rows.append({"source": name, "text": "\n\n".join(fresh)})
    args.out.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    print(
        f"{args.out}: {len(rows)} documents, {sum(len(row['text']) for row in rows):,} characters"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
