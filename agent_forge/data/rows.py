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
    if kind in ("chat", "sharegpt"):
        turns = [_turn(message) for message in row["messages" if kind == "chat" else "conversations"]]
        if not turns:
            raise DataError("a conversation without a turn")
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
        for _, turns in conversations(name):
            key = key_of(turns)
            if split_of(key) == split:
                found.setdefault(key, {"messages": turns})
    if not found:
        raise DataError(
            f"data.rows={names}: no row for the {split} split; give more rows (a split takes 8% to 76% of them)"
        )
    return [found[key] for key in sorted(found)]


def key_of(turns: list[dict[str, str]]) -> str:
    """Return what identifies a conversation: two rows with the same turns are one."""
    return json.dumps(turns, sort_keys=True)


def conversations(name: str) -> Iterator[tuple[Mapping[str, Any], list[dict[str, str]]]]:
    """Yield every row of one source as it stands there, and its turns. Raises DataError naming the row."""
    for number, row in enumerate(read_raw(name), start=1):
        try:
            yield row, messages(row)
        except DataError as error:
            raise DataError(f"data.rows: {name}, row {number}: {error}") from None


def check_source(name: str) -> None:
    """Read the first row of one source. Raises DataError when it is none; a hub name is not looked up."""
    if not name.startswith("hf:"):
        next(conversations(name))


def _turn(message: object) -> dict[str, str]:
    """Return one turn. Two spellings live in the wild: role/content and from/value, under either key."""
    if not isinstance(message, Mapping):
        raise DataError(f"a turn is an object with role and content, got a {type(message).__name__}")
    role = message.get("from", message.get("role"))
    content = _text(message.get("value", message.get("content")))
    calls = message.get("tool_calls")
    if calls:
        content = "\n".join([*filter(None, [content]), *map(_tool_call, calls)])
    known = SPEAKERS.get(str(role))
    if known is None or content is None:
        kind = type(message.get("value", message.get("content"))).__name__
        raise DataError(f"a turn has the role {role!r} and content of type {kind}; roles: {', '.join(SPEAKERS)}")
    return {"role": known, "content": content}


def _text(content: object) -> str | None:
    """Return the text of a turn: plain, or a list of text parts; None for anything else."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(map(str, parts))
    return None


def _tool_call(call: object) -> str:
    """Return a call in the chat format of OpenAI as the text that our models write; arguments are often JSON in JSON."""
    found: Any = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = found.get("name"), found.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except json.JSONDecodeError:
            raise DataError(f"the arguments of the tool call '{name}' are no JSON: {arguments[:60]!r}") from None
    if not isinstance(name, str):
        raise DataError(f"a tool call has a name and arguments, got {str(call)[:60]}")
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _pair(row: Mapping[str, Any]) -> tuple[str, str] | None:
    for question, answer in PAIRS:
        if isinstance(row.get(question), str) and isinstance(row.get(answer), str):
            return row[question], row[answer]
    return None
