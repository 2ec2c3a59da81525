"""Pairs of a chosen and a rejected answer, as people publish them, as two conversations.

    {"prompt", "chosen", "rejected"}           texts, or lists of messages (TRL)
    {"chosen": [...], "rejected": [...]}       whole conversations that begin alike (TRL)
    {"conversations", "chosen", "rejected"}    sharegpt, the answers as turns (LLaMA-Factory)
    {"messages", "chosen", "rejected"}         likewise
    {"instruction", "input", "chosen", "rejected"}   alpaca; also "question"

Every other key is read or refused as in rows (`dialects.py`), tools and system texts included.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.dialects import Message, messages
from agent_forge.data.documents import split_of
from agent_forge.data.files import UTF8, read_rows

CHOSEN, REJECTED = "chosen", "rejected"
# How a question is named -> how its answer is named in a row without a pair.
_EXERCISES = {"prompt": "completion", "instruction": "output", "question": "answer"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two conversations that differ in what the assistant says after `prompt_turns` turns."""

    chosen: list[Message]
    rejected: list[Message]
    prompt_turns: int


def read(
    names: Sequence[str], split: str, *, encoding: str = UTF8, ignored: Collection[str] = ()
) -> list[Pair]:
    """Return the distinct pairs of a split; a prompt's pairs are all in one split.

    Raises DataError naming file and row, and where the split has none.
    """
    pairs: dict[str, Pair] = {}
    for name in names:
        for where, row in read_rows(name, encoding):
            try:
                pair = pair_of(row, ignored)
            except DataError as error:
                raise DataError(f"preferences.rows: {where}: {error}") from None
            if split_of(json.dumps(pair.chosen[: pair.prompt_turns], sort_keys=True)) == split:
                pairs[json.dumps([pair.chosen, pair.rejected], sort_keys=True)] = pair
    if not pairs:
        raise DataError(
            f"preferences.rows={list(names)}: no pair for the {split} split; give more pairs (a "
            "split takes 8% to 76% of them)"
        )
    return [pairs[key] for key in sorted(pairs)]


def pair_of(row: Mapping[str, Any], ignored: Collection[str] = ()) -> Pair:
    """Return the pair of a row. Raises DataError for a row that is none."""
    missing = [key for key in (CHOSEN, REJECTED) if key not in row]
    if missing:
        raise DataError(
            f"a pair has a chosen and a rejected answer; {' and '.join(missing)} is missing among "
            f"{sorted(map(str, row))}"
        )
    chosen, rejected = (messages(_side(row, key), ignored) for key in (CHOSEN, REJECTED))
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if chosen == rejected:
        raise DataError("the chosen and the rejected answer are the same")
    for name, turns in ((CHOSEN, chosen), (REJECTED, rejected)):
        if not shared or len(turns) == shared or turns[shared]["role"] != "assistant":
            raise DataError(
                f"the {name} answer does not begin with a turn of the assistant after a shared "
                "prompt; both answers have to follow the same turns"
            )
    return Pair(chosen, rejected, shared)


def _side(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the row with one of its two answers, as a row that `dialects` reads."""
    rest = {name: value for name, value in row.items() if name not in (CHOSEN, REJECTED)}
    answer = row[key]
    turns = answer if isinstance(answer, list) else [answer]
    for field in ("conversations", "messages"):
        if field in rest:
            return {**rest, field: [*rest[field], *map(_turn, turns)]}
    if isinstance(rest.get("prompt"), list):
        prompt = rest.pop("prompt")
        return {**rest, "messages": [*prompt, *map(_turn, turns)]}
    if isinstance(answer, list):
        rest.pop("prompt", None)  # the conversation begins with it
        return {**rest, "messages": turns}
    for question, reply in _EXERCISES.items():
        if question in rest:
            return {**rest, reply: answer}
    raise DataError(
        f"a pair of texts has a question beside it: {', '.join(_EXERCISES)}, conversations or "
        "messages"
    )


def _turn(answer: object) -> object:
    """Return an answer as a turn of the assistant."""
    return {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
