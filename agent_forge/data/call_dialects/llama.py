"""Llama 3 and 4: Python calls in a list, or JSON with `parameters`, after `<|python_tag|>` or bare.

`[weather(city='Rome'), time()]`, `{"name": "weather", "parameters": {"city": "Rome"}}` (several
with `;` between) and `<function=weather>{"city": "Rome"}</function>` are read. A list or an object
that only looks alike (positional arguments, no parameters) is text. Source: Meta's prompt formats
for Llama 3.1, 3.2 and 4.
"""

import ast
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from keyword import iskeyword
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

TAG = "<|python_tag|>"
ENDS = ("<|eom_id|>", "<|eot_id|>", "<|python_end|>")
TAGS = (TAG, "<|python_start|>", "<|python_end|>")
MARKS = (TAG, "<|python_start|>", "ipython")
OPENINGS = (TAG, "<|python_start|>", "<function=", "[", "{")
_CONSTANTS = {"true": True, "false": False, "null": None, "None": None}
_LIST = r"\[\s*[A-Za-z_][\w.]*\(\s*(?:[A-Za-z_]\w*\s*=|\))"
_OBJECT = r"\{\s*\"(?:name|type|function)\"\s*:"
_FUNCTION = r"<function=[\w.\-]+>"
_PART = re.compile(f"(?:{_LIST})|(?:{_OBJECT})|(?:{_FUNCTION})")
_BETWEEN = re.compile(r"[\s;,]*")


def write(calls: Sequence[Call]) -> str:
    """Return calls as a Python list; as JSON where a name is not one of Python's."""
    if all(_is_pythonic(call) for call in calls):
        return "[" + ", ".join(map(_pythonic, calls)) + "]"
    return TAG + "; ".join(
        json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)
        for call in calls
    )


def scan(
    text: str, *, cut: bool = False, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> Scan:
    """Return the words and the calls of a text."""
    del schemas  # Python and JSON have types of their own
    return _GRAMMAR.scan(text, cut)


def _is_pythonic(call: Call) -> bool:
    names = [*call.name.split("."), *call.arguments]
    return all(name.isascii() and name.isidentifier() and not iskeyword(name)
               for name in names)  # fmt: skip


def _pythonic(call: Call) -> str:
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
    return f"{call.name}({arguments})"


def _read(text: str, opening: re.Match[str], cut: bool) -> Body:
    """Read the calls that a tag or the first of them begins."""
    tagged = opening[0].lstrip().startswith(TAGS[:2])
    place = opening.end() if tagged else opening.start()
    calls: list[Call | BrokenCall] = []
    while (part := _PART.match(text, _blank_end(text, place))) is not None:
        body = _one(text, part.start(), cut)
        if body.calls is None:
            break
        calls += body.calls
        place = body.after
    if not calls:
        if not tagged:
            return Body(None, opening.end())
        rest = text[place:]
        return Body(
            [BrokenCall(rest, f"what follows {TAG} is not a call: {clip(rest)}")], len(text)
        )
    for end in ENDS:
        place += len(end) if text.startswith(end, place) else 0
    return Body(calls, place)


def _blank_end(text: str, place: int) -> int:
    match = _BETWEEN.match(text, place)
    return place if match is None else match.end()


def _one(text: str, start: int, cut: bool) -> Body:
    """Read one list of Python calls, one JSON object, or one function tag at `start`."""
    if text[start] == "[":
        return _python_list(text, start)
    if text[start] == "{":
        return _json_object(text, start, cut)
    return _function_tag(text, start)


def _cut_off(text: str, start: int) -> Body:
    part = text[start:]
    message = f"the call is cut off, so nothing was run: {clip(part)}"
    return Body([BrokenCall(part, message)], len(text))


def _python_list(text: str, start: int) -> Body:
    end = _end_of_brackets(text, start)
    if end is None:
        return _cut_off(text, start)
    part = text[start:end]
    try:
        with warnings.catch_warnings():
            # Python warns of unknown escapes in strings; the model cannot act on that.
            warnings.simplefilter("ignore")
            tree = ast.parse(part, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Body([BrokenCall(part, f"the calls are not Python: {clip(part)}")], end)
    assert isinstance(tree, ast.List)
    calls: list[Call | BrokenCall] = []
    for node in tree.elts:
        if not isinstance(node, ast.Call) or node.args:
            return Body(None, end)
        try:
            arguments = {_named(key): _value(key.value) for key in node.keywords}
        except (ValueError, TypeError) as error:  # TypeError: a list as the key of a dict
            calls.append(BrokenCall(part, f"the arguments are not plain values: {error}"))
            continue
        calls.append(checked(ast.unparse(node.func), arguments, part))
    return Body(calls, end)


def _named(keyword: ast.keyword) -> str:
    """Return the name of an argument. Raises ValueError for `**` and what stands behind it."""
    if keyword.arg is None:
        raise ValueError(f"**{clip(ast.unparse(keyword.value))}")
    return keyword.arg


def _value(node: ast.expr) -> Any:
    """Return the JSON value of a Python literal. Raises ValueError that shows what is none."""
    match node:
        case ast.Constant(value=str() | int() | float() | None):
            return node.value
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [_value(part) for part in parts]
        case ast.Dict(keys=keys, values=values) if None not in keys:
            return {_value(k): _value(v) for k, v in zip(keys, values, strict=True) if k}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
    raise ValueError(clip(ast.unparse(node)))


def _end_of_brackets(text: str, start: int) -> int | None:
    """Return where the bracket at `start` closes, strings passed over; None where it never does."""
    depth, place = 0, start
    token = re.compile(r"[\[\](){}]|\"\"\"|'''|[\"']")
    while (mark := token.search(text, place)) is not None:
        place = mark.end()
        if mark[0] in ("'", '"', "'''", '"""'):
            # A backslash has one reading, so that a string without an end costs no second look.
            string = re.compile(rf"(?:\\[\s\S]|(?!{mark[0]})[^\\])*{mark[0]}")
            match = string.match(text, place)
            if match is None:
                return None
            place = match.end()
            continue
        depth += 1 if mark[0] in "[({" else -1
        if depth == 0:
            return place
    return None


def _json_object(text: str, start: int, cut: bool) -> Body:
    try:
        value, end = DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        part = text[start:]
        looks_like_one = re.search(r"\"(?:parameters|arguments)\"\s*:", part) is not None
        # An object that is not a call is the model's own words, however broken it is.
        return _cut_off(text, start) if looks_like_one or cut else Body(None, start + 1)
    if isinstance(value.get("function"), dict):
        value = value["function"]
    name = value.get("name", value.get("function"))
    arguments = next((value[key] for key in ("parameters", "arguments") if key in value), None)
    if not isinstance(name, str) or arguments is None:
        return Body(None, end)
    return Body([checked(name, _decoded(arguments), text[start:end])], end)


def _function_tag(text: str, start: int) -> Body:
    opening = re.compile(r"<function=([\w.\-]+)>\s*").match(text, start)
    assert opening is not None
    try:
        value, end = DECODER.raw_decode(text, opening.end())
    except (ValueError, RecursionError):
        return _cut_off(text, start)
    close = re.compile(r"\s*</function>").match(text, end)
    end = end if close is None else close.end()
    return Body([checked(opening[1], _decoded(value), text[start:end])], end)


def _decoded(arguments: Any) -> Any:
    """Return arguments that came as a JSON string as what they mean."""
    try:
        return decode(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


_GRAMMAR = Grammar(
    re.compile(rf"{re.escape(TAG)}|<\|python_start\|>|{_LIST}|{_OBJECT}|{_FUNCTION}"), _read
)
