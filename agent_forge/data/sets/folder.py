"""A data set's directory: files of rows by domain, a manifest, and a card.

`<domain>.text.jsonl` holds rows {"text"}, `<domain>.chat.jsonl` rows {"messages"}; `set.json` their
hashes, the recipe, counts and licences. The id is the hash of the files' hashes, so equal sets have
equal names wherever they are built; nothing in the directory depends on the time.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent_forge.config import DataConfig
from agent_forge.core.errors import DataError
from agent_forge.data import rows as raw
from agent_forge.data.sources import RowSource, Source, TextSource

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

MANIFEST, CARD = "set.json", "README.md"
FORMS = ("text", "chat")


@dataclass(frozen=True, slots=True)
class DataSet:
    """A verified data set."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Return the hash of the content."""
        return str(self.manifest["id"])

    @property
    def shares(self) -> dict[str, float]:
        """Return domain -> share, of the domains that hold something."""
        return {name: float(share) for name, share in self.manifest["shares"].items()}

    @property
    def benchmarks(self) -> list[str]:
        """Return the benchmarks whose data the set holds."""
        return list(self.manifest["benchmarks"])

    def files(self, domain: str) -> dict[str, Path]:
        """Return form ("text" or "chat") -> file of a domain."""
        named = {form: f"{domain}.{form}.jsonl" for form in FORMS}
        known = self.manifest["files"]
        return {form: self.path / name for form, name in named.items() if name in known}


def open_set(path: str | Path) -> DataSet:
    """Return a data set whose files have their recorded hashes.

    Raises DataError naming what is missing or changed.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"]
    except (OSError, ValueError, KeyError):
        raise DataError(
            f"{folder} is not a data set: it has no readable {MANIFEST}; build one with "
            "`forge data build broad`"
        ) from None
    for name, facts in files.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is missing; build the data set again")
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != facts["sha256"]:
                raise DataError(f"{file} has changed since it was built; build the set again")
    return DataSet(folder, manifest)


def benchmarks_of(path: str) -> list[str]:
    """Return the benchmarks whose data the set at `path` holds; none where there is no path."""
    return open_set(path).benchmarks if path else []


class DomainSource:
    """Windows of one domain: of running text and of packed chats, by their shares of the bytes."""

    def __init__(self, parts: list[Source], sizes: list[float]) -> None:
        self.parts = parts
        self.borders = np.cumsum(np.asarray(sizes) / sum(sizes))

    def take(
        self, generator: np.random.Generator, length: int
    ) -> "tuple[NDArray[np.int64], NDArray[np.int64]]":
        """Return a window of one of the parts as (ids, labels)."""
        place = int(np.searchsorted(self.borders, generator.random()))
        return self.parts[min(place, len(self.parts) - 1)].take(generator, length)

    def fingerprint(self) -> str:
        """Return what identifies the parts and their shares."""
        marks: Any = self.parts
        names = [part.fingerprint() for part in marks]
        return hashlib.sha256(json.dumps([names, self.borders.tolist()]).encode()).hexdigest()[:16]


def domain_sources(
    data_set: DataSet,
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerFast",
    split: str,
    mask_roles: Collection[str] = ("assistant",),
) -> dict[str, Source]:
    """Return domain -> source of windows of the split; hashes of rows decide their split.

    Of a small set the texts or the chats of a domain may all be in other splits: then it is the
    others alone. Raises DataError where a domain has neither.
    """
    settings = replace(config, max_text_bytes=0, near_duplicates=0.0, rows=[], encoding="utf-8")
    sources: dict[str, Source] = {}
    for domain in data_set.shares:
        parts: list[Source] = []
        sizes: list[float] = []
        reasons: list[DataError] = []
        for form, file in data_set.files(domain).items():
            try:
                if form == "text":
                    parts.append(TextSource(replace(settings, text=[str(file)]), tokenizer, split))
                else:
                    rows = raw.read([str(file)], split, mask_roles)
                    parts.append(RowSource(rows, tokenizer, mask_roles))
            except DataError as error:  # the files have their hashes, so nothing in them is damaged
                reasons.append(error)
                continue
            sizes.append(float(data_set.manifest["files"][file.name]["bytes"]))
        if not parts:
            raise DataError(
                f"{data_set.path}: domain '{domain}' has nothing for the {split} split; build a "
                "larger set: size_bytes, or its share"
            ) from reasons[-1]
        sources[domain] = DomainSource(parts, sizes)
    return sources
