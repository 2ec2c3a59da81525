"""How much of each held-out split is in training too: in canonical form, and in runs of 13 words.

The canonical form of a document or row is its text in lower case without punctuation; a generated
question's is what it asks. Runs of 13 words show what was copied into another document. For
generated rows they are shown but not limited, because templates share their words. Writes nothing.
Source: Brown et al. 2020, arXiv:2005.14165, appendix C (13-grams).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.config import DataConfig
from agent_forge.config.schema import SPLITS
from agent_forge.core import registry
from agent_forge.core.errors import DataError
from agent_forge.data import rows as raw
from agent_forge.data.documents import documents

RUN_WORDS = 13
FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2^64 can be undone
GENERATED = ("memory", "mixed", "reasoning", "tools")
Item = tuple[str, str]  # canonical form, text


def overlaps(config: DataConfig, count: int, seed: int) -> list[dict[str, Any]]:
    """Return one row per source and held-out split.

    {"source", "split", "items", "distinct", "in other splits": share of its items, "runs in train":
    share of its runs of 13 words, "limited": whether runs count}. count: generated rows per split.
    """
    sources = ["text", *(["rows"] if config.rows else []), *GENERATED]
    return [row for source in sources for row in _of_source(source, config, count, seed)]


def _of_source(source: str, config: DataConfig, count: int, seed: int) -> Iterator[dict[str, Any]]:
    parts = {split: list(_items(source, config, split, count, seed)) for split in SPLITS}
    known: dict[str, int] = {}
    runs = {split: runs_of((text for _, text in part), known) for split, part in parts.items()}
    for split, part in parts.items():
        if split == "train":
            continue
        forms = [form for form, _ in part]
        others = {form for other, items in parts.items() if other != split for form, _ in items}
        yield {
            "source": source, "split": split, "items": len(forms), "distinct": len(set(forms)),
            "in other splits": sum(form in others for form in forms) / max(len(forms), 1),
            "runs in train": _share_in(runs[split], runs["train"]),
            "limited": source not in GENERATED,
        }  # fmt: skip


def _items(source: str, config: DataConfig, split: str, count: int, seed: int) -> Iterator[Item]:
    if source == "text":
        for text in documents(config, split):
            yield " ".join(words_of(text)), text
    elif source == "rows":
        for row in _rows_or_none(config, split):
            text = "\n".join(turn["content"] for turn in row["messages"])
            yield " ".join(words_of(text)), text
    else:
        task = registry.load("agent_forge.data.synthetic", source, "generated task")
        for row in task.rows(count, split, seed):
            yield row["canonical"], "\n".join(turn["content"] for turn in row["messages"])


def _rows_or_none(config: DataConfig, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split; few rows may leave a split without any."""
    try:
        return raw.read(config.rows, split, encoding=config.encoding, ignored=config.ignore_keys)
    except DataError as error:
        if "no row for the" in str(error):
            return []
        raise


def _share_in(runs: NDArray[np.uint64], others: NDArray[np.uint64]) -> float:
    """Return the share of `runs` that are among `others`, 0 without any."""
    return float(np.isin(runs, others).mean()) if len(runs) else 0.0


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.casefold())


def runs_of(texts: Iterable[str], known: dict[str, int]) -> NDArray[np.uint64]:
    """Return the distinct runs of 13 words of some texts as 64-bit hashes.

    known: the number of each word so far.
    """
    runs = []
    for text in texts:
        numbers = np.asarray(
            [known.setdefault(word, len(known) + 1) for word in words_of(text)], np.uint64
        )
        if len(numbers) < RUN_WORDS:
            continue
        count = len(numbers) - RUN_WORDS + 1
        hashes = np.zeros(count, np.uint64)
        for place in range(RUN_WORDS):
            hashes = (hashes + numbers[place : place + count]) * FACTOR
            hashes ^= hashes >> np.uint64(29)
        runs.append(hashes)
    return np.unique(np.concatenate(runs)) if runs else np.empty(0, np.uint64)


def above(rows: Sequence[dict[str, Any]], limit: float) -> list[str]:
    """Return a line for every source and split whose overlap exceeds `limit`, or whose items
    repeat.
    """
    matches = []
    for row in rows:
        for name, counts in (("in other splits", True), ("runs in train", row["limited"])):
            if counts and row[name] > limit:
                matches.append(f"{row['source']} {row['split']}: {row[name]:.2%} {name}")
        if row["distinct"] < row["items"]:
            matches.append(
                f"{row['source']} {row['split']}: {row['items'] - row['distinct']} items repeat"
            )
    return matches
