"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

Assistant text becomes `Call`s; what looks like a call and cannot be read becomes a `BrokenCall`,
whose message the model is shown. A call that is only quoted, inside thoughts (`<think>…</think>`)
or between backticks, is text and never run.
"""

import ast
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.data.call_dialects._scanning import (
    DECODER,
    Body,
    Grammar,
    Scan,
    checked,
    clip,
    decode,
)
from agent_forge.data.calls import (
    CALL_CLOSE,
    CALL_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    BrokenCall,
    Call,
    write_call,
)

TAGS = (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE)
MARKS = (CALL_OPEN,)
OPENINGS = (CALL_OPEN,)
_ARGUMENT_KEYS = ("arguments", "parameters", "args")
_FENCE = re.compile(r"^\s*```(?:\w+)?[ \t]*\n?|```\s*$")
# Surplus braces and the end of a code fence may follow the last call in its tags.
_LITTER = re.compile(r"[\s}\],;]*(?:```)?\s*")


def write(calls: Sequence[Call]) -> str:
    """Return calls between their tags, one per line."""
    return "\n".join(map(format_call, calls))


def scan(
    text: str, *, cut: bool = False, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> Scan:
    """Return the words and the calls of a text, as `scan_calls` reads them."""
    del schemas  # JSON has types of its own
    return _GRAMMAR.scan(text, cut)


def format_call(call: Call) -> str:
    """Return the call as tagged JSON."""
    return write_call(call.name, call.arguments)


def parse_calls(text: str, *, cut: bool = False) -> list[Call]:
    """Return the readable calls in an assistant's text, in order; `cut` as for `scan_calls`."""
    return [call for call in scan_calls(text, cut=cut) if isinstance(call, Call)]


def scan_calls(text: str, *, cut: bool = False) -> list[Call | BrokenCall]:
    """Return every call in an assistant's text, readable or broken, in order.

    cut: the text ended because its tokens ran out; a call whose tag is still open then is broken,
    however complete it looks.

    Tolerated are several calls in one pair of tags (a list, or one after the other with commas,
    line ends or nothing between), closing tags inside strings, a missing closing tag behind a
    complete call, code fences, single quotes, trailing commas, missing closing braces before a
    closing tag, arguments encoded as a JSON string (once or twice), `parameters` for `arguments`,
    and OpenAI's `{"function": {...}}`. A call without its closing tag that is not a complete JSON
    value is never repaired, because its end is missing.
    """
    return _GRAMMAR.scan(text, cut).calls


def text_without_calls(text: str) -> str:
    """Return what the assistant said besides its calls; quoted calls stay."""
    return _GRAMMAR.scan(text, False).words


def _read_body(text: str, opening: re.Match[str], cut: bool) -> Body:
    """Read what stands behind an opening tag."""
    start = opening.end()
    values, end = _values(text, start)
    close = text.find(CALL_CLOSE, end)
    following = text.find(CALL_OPEN, end)
    closed = close >= 0 and (following < 0 or close < following)
    stop = close if closed else (following if following >= 0 else len(text))
    after = stop + len(CALL_CLOSE) if closed else stop
    body, rest = text[start:stop], text[end:stop]
    if not closed and following < 0 and (cut or not values or rest.strip()):
        message = f"the call is cut off before {CALL_CLOSE}, so nothing was run: {clip(body)}"
        return Body([BrokenCall(body, message)], after)
    calls = [call for value in values for call in _to_calls(value, body)]
    if not values:
        value = _repair(body) if closed else None
        calls = (
            [BrokenCall(body, f"the call is not JSON: {clip(body)}")]
            if value is None
            else _to_calls(value, body)
        )
    elif _LITTER.fullmatch(rest) is None:
        calls.append(BrokenCall(rest, f"what follows the call is not JSON: {clip(rest)}"))
    return Body(calls, after)


def _values(text: str, start: int) -> tuple[list[Any], int]:
    """Return the consecutive JSON values from `start` on, and where the last one ends."""
    values: list[Any] = []
    end = start
    while True:
        opening = re.compile(r"[\s,]*(?=[{\[\"0-9tfn-])" if values else r"\s*").match(text, end)
        if opening is None:
            return values, end
        try:
            value, stop = DECODER.raw_decode(text, opening.end())
        except (ValueError, RecursionError):
            return values, end
        values.append(value)
        end = stop


def _repair(body: str) -> Any:
    """Return the JSON value that `body` was meant to be, or None."""
    body = _FENCE.sub("", _FENCE.sub("", body, count=1)).strip()
    candidates = [body, re.sub(r",\s*([}\]])", r"\1", body)]
    candidates += [candidates[-1] + ending for ending in ("}", "}}", '"}', '"}}')]
    for candidate in candidates:
        try:
            return decode(candidate)
        except (ValueError, RecursionError):
            pass
        try:
            with warnings.catch_warnings():
                # Python warns of unknown escapes in strings; the model cannot act on that.
                warnings.simplefilter("ignore")
                value = ast.literal_eval(candidate)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
        if isinstance(value, dict | list):
            return value
    return None


def _to_calls(value: Any, body: str) -> list[Call | BrokenCall]:
    if isinstance(value, str):
        try:
            inner = decode(value)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict | list):
            return _to_calls(inner, body)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [call for item in value for call in _to_calls(item, body)]
    if not isinstance(value, dict):
        return [
            BrokenCall(body, f"a call is a JSON object with name and arguments, got {clip(body)}")
        ]
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", inner if isinstance(inner, str) else value.get("tool"))
    if not isinstance(name, str) or not name.strip():
        return [BrokenCall(body, f"the call names no tool: {clip(body)}")]
    arguments: Any = next((value[key] for key in _ARGUMENT_KEYS if key in value), {})
    for _ in range(2):
        if isinstance(arguments, str):
            try:
                arguments = decode(arguments)
            except (ValueError, RecursionError):
                if (repaired := _repair(arguments)) is None:
                    break
                arguments = repaired
    if arguments is None:
        arguments = {}
    return [checked(name, arguments, body)]


_GRAMMAR = Grammar(
    re.compile(CALL_OPEN), _read_body, lambda text, mark: _values(text, mark.end())[1]
)
