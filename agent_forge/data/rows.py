"""Rows of conversations as people publish them: chat, sharegpt, alpaca, prompt and completion; all become messages.

A row becomes the same list of {"role", "content"} whatever its dialect, and belongs to one split by the hash of that.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.documents import read_raw, split_of

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
SPEAKERS |= {
    "chatgpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
PAIRS = (("prompt", "completion"), ("question", "answer"), ("prompt", "response"))


def dialect(row: Mapping[str, Any]) -> str:
    """Return chat, sharegpt, alpaca or pair; "" for a row that is no conversation."""
    if isinstance(row.get("messages"), list):
        return "chat"
    if isinstance(row.get("conversations"), list):
        return "sharegpt"
    if isinstance(row.get("instruction"), str) and isinstance(row.get("output"), str):
        return "alpaca"
    return "pair" if _pair(row) else ""


def messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the turns of a row. Raises DataError when it is none of the known dialects, or a turn is unreadable."""
    kind = dialect(row)
    if kind == "chat":
        turns = [_turn(message.get("role"), message.get("content")) for message in row["messages"]]
    elif kind == "sharegpt":
        # Two spellings live in the wild: from/value, and role/content under the same key.
        turns = [
            _turn(message.get("from", message.get("role")), message.get("value", message.get("content")))
            for message in row["conversations"]
        ]
    elif kind == "alpaca":
        asked = f"{row['instruction']}\n\n{row['input']}" if row.get("input") else row["instruction"]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    elif kind == "pair":
        question, answer = _pair(row) or ("", "")
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    else:
        raise DataError(
            f"a row with the keys {sorted(row)} is no conversation; known: messages (chat), conversations (sharegpt), "
            "instruction and output (alpaca), prompt and completion, question and answer"
        )
    if isinstance(row.get("system"), str) and row["system"] and turns[0]["role"] != "system":
        turns.insert(0, {"role": "system", "content": row["system"]})
    return turns


def read(names: list[str], split: str) -> list[dict[str, Any]]:
    """Return the distinct rows of `split` of all sources, each with its "messages". Raises DataError without any."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for number, row in enumerate(read_raw(name), start=1):
            try:
                turns = messages(row)
            except DataError as error:
                raise DataError(f"data.rows: {name}, row {number}: {error}") from None
            key = key_of(turns)
            if split_of(key) == split:
                found.setdefault(key, {"messages": turns})
    if not found:
        raise DataError(
            f"data.rows={names}: no row for the {split} split; give more rows (a split takes 4% to 88% of them)"
        )
    return [found[key] for key in sorted(found)]


def key_of(turns: list[dict[str, str]]) -> str:
    """Return what identifies a conversation: two rows with the same turns are one."""
    return json.dumps(turns, sort_keys=True)


def all_rows(name: str) -> Iterator[Mapping[str, Any]]:
    """Yield every row of one source as it stands in the file."""
    yield from read_raw(name)


def _turn(role: object, content: object) -> dict[str, str]:
    known = SPEAKERS.get(str(role))
    if known is None or not isinstance(content, str):
        raise DataError(
            f"a turn has the role {role!r} and content of type {type(content).__name__}; roles: {', '.join(SPEAKERS)}"
        )
    return {"role": known, "content": content}


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    for question, answer in PAIRS:
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            return row[question], row[answer]
    return None
