"""How tool calls and their results are written: Hermes tags around JSON.

Training rows and the agent write them alike.

`<tool_call>{"name": …, "arguments": {…}}</tool_call>` and `<tool_response>…</tool_response>`, the
convention of Hermes and Qwen. Reading them back, and other dialects, are `call_dialects/`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<tool_response>", "</tool_response>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
# A tag inside a tool's text gets a backslash after "<", or one more where it has some already, so
# that reading can undo it exactly.
_TAG = re.compile(r"<(\\*)(/?tool_(?:call|response))>")
_ESCAPED_TAG = re.compile(r"<\\(\\*)(/?tool_(?:call|response))>")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to run the tool `name` with `arguments` (JSON values)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BrokenCall:
    """Text between call tags that cannot be read as a call: `message` says why."""

    text: str
    message: str


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the call as tagged JSON. A tag inside a string has \\u003c for "<", so a plain search
    finds the end.
    """
    text = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    text = re.sub(r"<(?=/?tool_(?:call|response)>)", r"\\u003c", text)
    return f"{CALL_OPEN}{text}{CALL_CLOSE}"


def write_response(text: str) -> str:
    """Return a tool's result between its tags.

    Tags inside `text` are escaped, so that a result cannot forge a turn.
    """
    return RESPONSE_OPEN + _TAG.sub(r"<\\\1\2>", text) + RESPONSE_CLOSE


def read_response(text: str) -> str:
    """Return the result inside `<tool_response>…</tool_response>` exactly as the tool gave it."""
    start = text.find(RESPONSE_OPEN)
    end = text.rfind(RESPONSE_CLOSE)
    body = text[start + len(RESPONSE_OPEN) if start >= 0 else 0 : end if end >= 0 else len(text)]
    return _ESCAPED_TAG.sub(r"<\1\2>", body)
