"""Mistral: `[TOOL_CALLS][{"name": "f", "arguments": {…}}]`, or `[TOOL_CALLS]f[ARGS]{…}`.

Older tokenizers (v1 to v7) use the first form; v11 and later use the second, with an optional
`[CALL_ID]…` between. Source: mistral-common's instruct tokenizers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from agent_forge.data.calls import BrokenCall, Call

TAG = "[TOOL_CALLS]"
ARGUMENTS, CALL_ID = "[ARGS]", "[CALL_ID]"
TAGS = (TAG, ARGUMENTS, CALL_ID)
MARKS = (TAG,)
OPENINGS = (TAG,)
_NAMED = re.compile(r"\s*([^\s\[{]+)\s*(?:\[CALL_ID\]\s*(\S*?)\s*)?(?:\[ARGS\])?\s*(?=\{)")
_END = re.compile(r"\s*(?:</s>)?")


def write(calls: Sequence[Call]) -> str:
    """Return calls as a JSON list behind the tag."""
    entries = [{"name": call.name, "arguments": call.arguments} for call in calls]
    # The tag inside a string is escaped, so that a plain search finds none.
    return TAG + json.dumps(entries, ensure_ascii=False).replace(TAG, "\\u005bTOOL_CALLS]")


def scan(
    text: str, *, cut: bool = False, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> Scan:
    """Return the words and the calls of a text."""
    del schemas  # JSON has types of its own
    return _GRAMMAR.scan(text, cut)


def _read(text: str, opening: re.Match[str], cut: bool) -> Body:
    """Read what stands behind the tag."""
    place = opening.end()
    named = _NAMED.match(text, place)
    if named is not None:
        return _named(text, named, cut)
    blank = re.compile(r"\s*").match(text, place)
    start = place if blank is None else blank.end()
    try:
        value, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        following = text.find(TAG, start)
        stop = len(text) if following < 0 else following
        part = text[start:stop]
        message = f"the calls are cut off or not JSON, so nothing was run: {clip(part)}"
        return Body([BrokenCall(part, message)], stop)
    entries = value if isinstance(value, list) else [value]
    return Body([_entry(entry, text[start:end]) for entry in entries], _after(text, end))


def _named(text: str, named: re.Match[str], cut: bool) -> Body:
    """Read `name[ARGS]{…}`."""
    del cut  # the object's own end shows whether it is whole
    try:
        value, end = DECODER.raw_decode(text, named.end())
    except (ValueError, RecursionError):
        part = text[named.start() :]
        message = f"the call of {clip(named[1])} is cut off, so nothing was run: {clip(part)}"
        following = text.find(TAG, named.end())
        return Body([BrokenCall(part, message)], len(text) if following < 0 else following)
    return Body([checked(named[1], value, text[named.start() : end])], _after(text, end))


def _entry(entry: Any, body: str) -> Call | BrokenCall:
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return BrokenCall(body, f"a call is an object with name and arguments, got {clip(body)}")
    arguments = entry.get("arguments", entry.get("parameters", {}))
    with suppress(ValueError, RecursionError):
        arguments = decode(arguments) if isinstance(arguments, str) else arguments
    return checked(entry["name"], {} if arguments is None else arguments, body)


def _after(text: str, end: int) -> int:
    match = _END.match(text, end)
    return end if match is None or not match[0].strip() else match.end()


_GRAMMAR = Grammar(re.compile(re.escape(TAG)), _read)
