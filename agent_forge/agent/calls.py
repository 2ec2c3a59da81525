"""Tool calls as text: Hermes tags around JSON, written so that any parser reads them back, read however they came.

`<tool_call>{"name": …, "arguments": {…}}</tool_call>` and `<tool_response>…</tool_response>`, the convention of
Hermes and Qwen. Reads assistant text, gives `Call`s; what looks like a call and cannot be read is a `BrokenCall`
whose message the model is shown.
"""

import ast
import json
import re
from dataclasses import dataclass, field
from typing import Any

CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<tool_response>", "</tool_response>"
# A tag inside a tool's text gets a backslash after "<", one more where there are some: so it is undone exactly.
_TAG = re.compile(r"<(\\*)(/?tool_(?:call|response))>")
_ESCAPED_TAG = re.compile(r"<\\(\\*)(/?tool_(?:call|response))>")
_ARGUMENT_KEYS = ("arguments", "parameters", "args")
_DECODER = json.JSONDecoder(strict=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A request to run the tool `name` with `arguments` (JSON values)."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BrokenCall:
    """Text between call tags that is no call: `message` says why."""

    text: str
    message: str


def format_call(call: Call) -> str:
    """Return the call as tagged JSON. A tag inside a string has \\u003c for "<", so a plain search finds the end."""
    text = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    text = re.sub(r"<(?=/?tool_(?:call|response)>)", r"\\u003c", text)
    return f"{CALL_OPEN}{text}{CALL_CLOSE}"


def format_response(text: str) -> str:
    """Return a tool's result between its tags; tags inside `text` are escaped, so a result cannot forge a turn."""
    return RESPONSE_OPEN + _TAG.sub(r"<\\\1\2>", text) + RESPONSE_CLOSE


def parse_response(text: str) -> str:
    """Return the result inside `<tool_response>…</tool_response>` exactly as the tool gave it."""
    start = text.find(RESPONSE_OPEN)
    end = text.rfind(RESPONSE_CLOSE)
    body = text[start + len(RESPONSE_OPEN) if start >= 0 else 0 : end if end >= 0 else len(text)]
    return _ESCAPED_TAG.sub(r"<\1\2>", body)


def parse_calls(text: str) -> list[Call]:
    """Return the readable calls in an assistant's text, in order."""
    return [call for call in scan_calls(text) if isinstance(call, Call)]


def scan_calls(text: str) -> list[Call | BrokenCall]:
    """Return every call in an assistant's text, readable or broken, in order.

    Tolerated: closing tags inside strings, a missing closing tag, code fences, single quotes, trailing commas, missing
    closing braces, arguments encoded as a JSON string (once or twice), `parameters` for `arguments`, OpenAI's
    `{"function": {...}}`, and a list of calls in one pair of tags.
    """
    found: list[Call | BrokenCall] = []
    position = text.find(CALL_OPEN)
    while position >= 0:
        start = position + len(CALL_OPEN)
        value, end = _read_value(text, start)
        if end < 0:
            end = _end_of_body(text, start)
            body = text[start:end]
            value = _repair(body)
            if value is None:
                found.append(BrokenCall(body, f"the call is not JSON: {_clip(body)}"))
        else:
            body = text[start:end]
        if value is not None:
            found += _to_calls(value, body)
        position = text.find(CALL_OPEN, end)
    return found


def text_without_calls(text: str) -> str:
    """Return what the assistant said besides its calls."""
    parts, position = [], 0
    while (opening := text.find(CALL_OPEN, position)) >= 0:
        parts.append(text[position:opening])
        start = opening + len(CALL_OPEN)
        _, end = _read_value(text, start)
        end = _end_of_body(text, max(end, start))
        position = end + len(CALL_CLOSE) if text.startswith(CALL_CLOSE, end) else end
    parts.append(text[position:])
    return "".join(parts).strip()


def _read_value(text: str, start: int) -> tuple[Any, int]:
    """Return the JSON value that begins at `start` (after white space) and where it ends; (None, -1) without one."""
    while start < len(text) and text[start].isspace():
        start += 1
    try:
        return _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, -1


def _end_of_body(text: str, start: int) -> int:
    ends = [end for tag in (CALL_CLOSE, CALL_OPEN) if (end := text.find(tag, start)) >= 0]
    return min(ends, default=len(text))


def _repair(body: str) -> Any:
    """Return the JSON value that `body` was meant to be, or None."""
    body = re.sub(r"^\s*```(?:json)?|```\s*$", "", body).strip()
    candidates = [body, re.sub(r",\s*([}\]])", r"\1", body)]
    candidates += [candidates[-1] + ending for ending in ("}", "}}", '"}', '"}}')]
    for candidate in candidates:
        try:
            return json.loads(candidate, strict=False)
        except (ValueError, RecursionError):
            pass
        try:
            value = ast.literal_eval(candidate)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, dict | list):
            return value
    return None


def _to_calls(value: Any, body: str) -> list[Call | BrokenCall]:
    if isinstance(value, str):
        inner, end = _read_value(value, 0)
        if end >= 0 and not isinstance(inner, str):
            return _to_calls(inner, body)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [call for item in value for call in _to_calls(item, body)]
    if not isinstance(value, dict):
        return [BrokenCall(body, f"a call is a JSON object with name and arguments, got {_clip(body)}")]
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", inner if isinstance(inner, str) else value.get("tool"))
    if not isinstance(name, str) or not name.strip():
        return [BrokenCall(body, f"the call names no tool: {_clip(body)}")]
    arguments: Any = next((value[key] for key in _ARGUMENT_KEYS if key in value), {})
    for _ in range(2):
        if isinstance(arguments, str):
            decoded, end = _read_value(arguments, 0)
            if end < 0 and (decoded := _repair(arguments)) is None:
                break
            arguments = decoded
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return [BrokenCall(body, f"arguments of {name} must be a JSON object, got {_clip(str(arguments))}")]
    return [Call(name.strip(), arguments)]


def _clip(text: str, limit: int = 80) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
