"""Qwen3-Coder: XML-like tags, a value between each pair of them, types from the tool's schema.

    <tool_call>
    <function=weather>
    <parameter=city>
    Rome
    </parameter>
    </function>
    </tool_call>

Values are plain text: a parameter that the schema calls text stays text, everything else is read as
JSON, or as Python writes it (True, None). Nothing in this dialect escapes a closing tag, so a value
ends at the first one that a further tag follows. Source: the chat template of Qwen3-Coder.
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.data.call_dialects._scanning import Body, Grammar, Scan, checked, clip, decode
from agent_forge.data.calls import CALL_CLOSE, CALL_OPEN, BrokenCall, Call

TAGS = (CALL_OPEN, CALL_CLOSE)
MARKS = ("<function=",)
OPENINGS = (CALL_OPEN, "<function=")
Schemas = Mapping[str, Mapping[str, Any]]
_OPENING = r"(?:<tool_call>\s*)?<function=[^>\n]+>"
_NAME = re.compile(r"(?:<tool_call>\s*)?<function=([^>\n]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?")
_VALUE_END = re.compile(
    r"\n?</parameter>(?=\s*(?:<parameter=|</function>|</tool_call>|<tool_call>|\Z))"
)
_FUNCTION_END = re.compile(r"\s*</function>")
_CALL_END = re.compile(r"\s*</tool_call>")


def write(calls: Sequence[Call]) -> str:
    """Return calls in their tags; text stands as it is, any other value as JSON."""
    return "\n".join(map(_written, calls))


def scan(text: str, *, cut: bool = False, schemas: Schemas | None = None) -> Scan:
    """Return the words and the calls of a text, its values typed by `schemas`."""
    grammar = Grammar(
        re.compile(_OPENING), lambda whole, mark, is_cut: _read(whole, mark, is_cut, schemas or {})
    )
    return grammar.scan(text, cut)


def _written(call: Call) -> str:
    parts = "".join(
        f"<parameter={name}>\n{_text(value)}\n</parameter>\n"
        for name, value in call.arguments.items()
    )
    return f"{CALL_OPEN}\n<function={call.name}>\n{parts}</function>\n{CALL_CLOSE}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read(text: str, opening: re.Match[str], cut: bool, schemas: Schemas) -> Body:
    """Read one function and its parameters."""
    name_match = _NAME.match(text, opening.start())
    assert name_match is not None
    name, place = name_match[1].strip(), name_match.end()
    properties: Any = schemas.get(name, {}).get("properties") or {}
    arguments: dict[str, Any] = {}
    while (parameter := _PARAMETER.match(text, place)) is not None:
        end = _VALUE_END.search(text, parameter.end())
        if end is None:
            return _cut_off(text, opening.start())
        key = parameter[1].strip()
        arguments[key] = _typed(text[parameter.end() : end.start()], properties.get(key))
        place = end.end()
    close = _FUNCTION_END.match(text, place)
    whole = _CALL_END.match(text, place if close is None else close.end())
    if close is None and (whole is None or cut):
        following = re.search(_OPENING, text[place:])
        if following is None or text[place : place + following.start()].strip():
            return _cut_off(text, opening.start())
    last = whole or close
    after = place if last is None else last.end()
    return Body([checked(name, arguments, text[opening.start() : after])], after)


def _cut_off(text: str, start: int) -> Body:
    part = text[start:]
    message = f"the call is cut off before </function>, so nothing was run: {clip(part)}"
    return Body([BrokenCall(part, message)], len(text))


def _typed(text: str, schema: Any) -> Any:
    """Return a value as its schema means it; without a schema, what reads as JSON is JSON."""
    kinds = _kinds(schema)
    if kinds == {"string"}:
        return text
    if text.strip().lower() in ("null", "none") and (not kinds or "null" in kinds):
        return None
    try:
        value = decode(text)
    except (ValueError, RecursionError):
        value = _python(text)
    fits = not kinds or "string" not in kinds or not isinstance(value, str)
    return value if value is not _NOTHING and fits and not isinstance(value, str) else text


_NOTHING = object()


def _python(text: str) -> Any:
    """Return a value as Python writes it: the official template prints True and None."""
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return _NOTHING
    return value if isinstance(value, bool | int | float | list | dict) else _NOTHING


def _kinds(schema: Any) -> set[str]:
    """Return the types that a schema allows; empty where it names none."""
    if not isinstance(schema, Mapping):
        return set()
    kind = schema.get("type")
    kinds = {kind} if isinstance(kind, str) else set(kind or ())
    for part in (*(schema.get("anyOf") or ()), *(schema.get("oneOf") or ())):
        kinds |= _kinds(part)
    if not kinds and all(isinstance(value, str) for value in schema.get("enum") or (0,)):
        kinds = {"string"}
    return kinds
