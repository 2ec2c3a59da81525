"""Tool calls read back from an assistant's text, however they came.

`data/calls.py` writes them. Here assistant text becomes `Call`s; what looks like a call and cannot
be read becomes a `BrokenCall`, whose message the model is shown. A call that is only quoted, inside
thoughts (`<think>…</think>`) or between backticks, is text and never run.
"""

import ast
import json
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

from agent_forge.data.calls import (
    CALL_CLOSE,
    CALL_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    BrokenCall,
    Call,
    read_response,
    write_call,
    write_response,
)

__all__ = [
    "CALL_CLOSE", "CALL_OPEN", "RESPONSE_CLOSE", "RESPONSE_OPEN", "BrokenCall", "Call",
    "format_call", "format_response", "parse_calls", "parse_response", "scan_calls",
    "text_without_calls",
]  # fmt: skip

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
TAGS = (CALL_OPEN, CALL_CLOSE, THINK_OPEN, THINK_CLOSE)
_ARGUMENT_KEYS = ("arguments", "parameters", "args")
_FENCE = re.compile(r"^\s*```(?:\w+)?[ \t]*\n?|```\s*$")
# Surplus braces and the end of a code fence may follow the last call in its tags.
_LITTER = re.compile(r"[\s}\],;]*(?:```)?\s*")
_TICKS_OR_CALL = re.compile(rf"`+|{CALL_OPEN}")
_NEXT = re.compile(rf"{CALL_OPEN}|{THINK_OPEN}|{THINK_CLOSE}|`+")


@dataclass(frozen=True, slots=True)
class _Body:
    """The calls between two tags; their text stops at `end`, and the closing tag at `after`."""

    calls: list[Call | BrokenCall]
    end: int
    after: int


def format_call(call: Call) -> str:
    """Return the call as tagged JSON."""
    return write_call(call.name, call.arguments)


format_response = write_response
parse_response = read_response


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
    return [call for _, body in _pieces(text, cut) if body is not None for call in body.calls]


def text_without_calls(text: str) -> str:
    """Return what the assistant said besides its calls; quoted calls stay."""
    return "".join(words for words, _ in _pieces(text, False)).strip()


def _pieces(text: str, cut: bool) -> list[tuple[str, _Body | None]]:
    """Return (words, the call tags that follow them, or None at the end) of a text, in order."""
    pieces: list[tuple[str, _Body | None]] = []
    done = place = 0
    thought = False
    while (mark := _NEXT.search(text, place)) is not None:
        place = mark.end()
        if mark[0] == CALL_OPEN:
            body = _read_body(text, mark.end(), cut)
            pieces.append((text[done : mark.start()], body))
            done = place = body.after
        elif mark[0] == THINK_OPEN:
            thought = True
            close = text.find(THINK_CLOSE, place)
            place = len(text) if close < 0 else close + len(THINK_CLOSE)
        elif mark[0] == THINK_CLOSE and not thought:
            # Some templates open the thoughts in the prompt: everything so far was thought, and
            # calls quoted there stay words.
            thought = True
            pieces, done = [], 0
        elif mark[0].startswith("`"):
            place = _end_of_quote(text, mark)
    return [*pieces, (text[done:], None)]


def _end_of_quote(text: str, opening: re.Match[str]) -> int:
    """Return where the code that backticks open ends, or the place right behind them.

    As in Markdown, the same number of backticks closes it, and a fence of three that is never
    closed reaches to the end of the text.
    """
    ticks, place = opening[0], opening.end()
    while (mark := _TICKS_OR_CALL.search(text, place)) is not None:
        if mark[0] == ticks:
            return mark.end()
        # Backticks inside the strings of a call do not close the quotation.
        place = _values(text, mark.end())[1] if mark[0] == CALL_OPEN else mark.end()
    return len(text) if len(ticks) >= 3 else opening.end()


def _read_body(text: str, start: int, cut: bool) -> _Body:
    """Read what stands behind an opening tag at `start`."""
    values, end = _values(text, start)
    close = text.find(CALL_CLOSE, end)
    following = text.find(CALL_OPEN, end)
    closed = close >= 0 and (following < 0 or close < following)
    stop = close if closed else (following if following >= 0 else len(text))
    after = stop + len(CALL_CLOSE) if closed else stop
    body, rest = text[start:stop], text[end:stop]
    if not closed and following < 0 and (cut or not values or rest.strip()):
        message = f"the call is cut off before {CALL_CLOSE}, so nothing was run: {_clip(body)}"
        return _Body([BrokenCall(body, message)], stop, after)
    calls = [call for value in values for call in _to_calls(value, body)]
    if not values:
        value = _repair(body) if closed else None
        calls = (
            [BrokenCall(body, f"the call is not JSON: {_clip(body)}")]
            if value is None
            else _to_calls(value, body)
        )
    elif _LITTER.fullmatch(rest) is None:
        calls.append(BrokenCall(rest, f"what follows the call is not JSON: {_clip(rest)}"))
    return _Body(calls, stop, after)


def _values(text: str, start: int) -> tuple[list[Any], int]:
    """Return the consecutive JSON values from `start` on, and where the last one ends."""
    values: list[Any] = []
    end = start
    while True:
        opening = re.compile(r"[\s,]*(?=[{\[\"0-9tfn-])" if values else r"\s*").match(text, end)
        if opening is None:
            return values, end
        try:
            value, stop = _DECODER.raw_decode(text, opening.end())
        except (ValueError, RecursionError):
            return values, end
        values.append(value)
        end = stop


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)


def _decode(text: str) -> Any:
    """Return the JSON value of a text. Raises ValueError or RecursionError where it is not one."""
    value, end = _DECODER.raw_decode(text.strip())
    if text.strip()[end:]:
        raise ValueError("more than one value")
    return value


def _repair(body: str) -> Any:
    """Return the JSON value that `body` was meant to be, or None."""
    body = _FENCE.sub("", _FENCE.sub("", body, count=1)).strip()
    candidates = [body, re.sub(r",\s*([}\]])", r"\1", body)]
    candidates += [candidates[-1] + ending for ending in ("}", "}}", '"}', '"}}')]
    for candidate in candidates:
        try:
            return _decode(candidate)
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
            inner = _decode(value)
        except (ValueError, RecursionError):
            inner = None
        if isinstance(inner, dict | list):
            return _to_calls(inner, body)
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        return [call for item in value for call in _to_calls(item, body)]
    if not isinstance(value, dict):
        return [
            BrokenCall(body, f"a call is a JSON object with name and arguments, got {_clip(body)}")
        ]
    inner = value.get("function")
    if isinstance(inner, dict):
        value = inner
    name = value.get("name", inner if isinstance(inner, str) else value.get("tool"))
    if not isinstance(name, str) or not name.strip():
        return [BrokenCall(body, f"the call names no tool: {_clip(body)}")]
    arguments: Any = next((value[key] for key in _ARGUMENT_KEYS if key in value), {})
    for _ in range(2):
        if isinstance(arguments, str):
            try:
                arguments = _decode(arguments)
            except (ValueError, RecursionError):
                if (repaired := _repair(arguments)) is None:
                    break
                arguments = repaired
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return [
            BrokenCall(
                body,
                f"arguments of {_clip(name)} must be a JSON object, got {_clip(str(arguments))}",
            )
        ]
    wrong = _not_json([name, arguments])
    if wrong:
        return [
            BrokenCall(
                body,
                f"the call of {_clip(name)} holds {wrong}; write the character or number itself",
            )
        ]
    return [Call(name.strip(), arguments)]


def _not_json(value: Any) -> str:
    """Return what in a value JSON cannot write: half characters, infinities, other types; or ""."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"half of a surrogate pair (\\u{ord(value[error.start]):04x})"
        return ""
    if isinstance(value, dict):
        return next(
            filter(None, (_not_json(part) for pair in value.items() for part in pair)), ""
        ) or ("" if all(isinstance(key, str) for key in value) else "a key that is not a string")
    if isinstance(value, list):
        return next(filter(None, map(_not_json, value)), "")
    if (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return ""
    return f"{_clip(repr(value))}, which is not JSON"


def _clip(text: str, limit: int = 80) -> str:
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
