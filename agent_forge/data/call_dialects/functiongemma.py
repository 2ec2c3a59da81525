"""FunctionGemma: `<start_function_call>call:weather{city:<escape>Rome<escape>}<end_function_call>`.

Values are bare JSON, except that text stands between two `<escape>` tokens, quotes and line ends
included; keys are bare, and between the same tokens where they are not plain. Nothing escapes
`<escape>` itself, so text that holds it cannot be written. Source: FunctionGemma's model card.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.call_dialects._scanning import Body, Grammar, Scan, checked, clip
from agent_forge.data.calls import BrokenCall, Call

OPEN, CLOSE, ESCAPE = "<start_function_call>", "<end_function_call>", "<escape>"
TAGS = (OPEN, CLOSE, ESCAPE)
MARKS = (OPEN,)
OPENINGS = (OPEN,)
_NAME = re.compile(r"\s*(?:call:)?\s*([^\s{<]+)\s*(?=\{)")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?=\s*[,}\]])")
_KEY = re.compile(r"[\w.\-]+")
_CONSTANTS = {
    "true": True, "True": True, "false": False, "False": False, "null": None, "none": None,
    "None": None,
}  # fmt: skip
# Text that only begins like one of them ("nullable") is text.
_CONSTANT = re.compile(rf"(?:{'|'.join(_CONSTANTS)})(?=\s*[,}}\]])")
_BLANK = re.compile(r"\s*")


def write(calls: Sequence[Call]) -> str:
    """Return calls one after the other. Raises DataError for text that holds `<escape>`."""
    return "".join(f"{OPEN}call:{call.name}{_written(call.arguments)}{CLOSE}" for call in calls)


def scan(
    text: str, *, cut: bool = False, schemas: Mapping[str, Mapping[str, Any]] | None = None
) -> Scan:
    """Return the words and the calls of a text."""
    del schemas  # the values show their types
    return _GRAMMAR.scan(text, cut)


def _written(value: Any) -> str:
    if isinstance(value, str):
        if ESCAPE in value:
            raise DataError(f"FunctionGemma cannot write text that holds {ESCAPE}")
        return f"{ESCAPE}{value}{ESCAPE}"
    if isinstance(value, Mapping):
        pairs = (f"{_written_key(key)}:{_written(part)}" for key, part in value.items())
        return "{" + ",".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _written_key(key: str) -> str:
    return key if _KEY.fullmatch(key) else _written(key)


def _read(text: str, opening: re.Match[str], cut: bool) -> Body:
    """Read one call."""
    del cut  # the braces show whether a call is whole
    name = _NAME.match(text, opening.end())
    close = text.find(CLOSE, opening.end())
    if name is not None:
        try:
            arguments, end = _Reader(text).value(name.end())
        except _BrokenText as error:
            return _broken(text, opening, close, str(error))
        close = text.find(CLOSE, end)
        blank = _BLANK.match(text, end)
        after = close + len(CLOSE) if close == (blank.end() if blank else end) else end
        return Body([checked(name[1], arguments, text[opening.start() : after])], after)
    return _broken(text, opening, close, "the call has no name and {arguments}")


def _broken(text: str, opening: re.Match[str], close: int, why: str) -> Body:
    stop = len(text) if close < 0 else close
    part = text[opening.end() : stop]
    after = stop if close < 0 else stop + len(CLOSE)
    return Body([BrokenCall(part, f"{why}, so nothing was run: {clip(part)}")], after)


class _BrokenText(ValueError):
    """The text is not a value."""


class _Reader:
    """Reads values; each method returns a value and where it ends."""

    def __init__(self, text: str) -> None:
        self.text = text

    def value(self, place: int, depth: int = 0) -> tuple[Any, int]:
        """Read the value at `place`. Raises _BrokenText."""
        if depth > 100:
            raise _BrokenText("the arguments are nested too deeply")
        place = self._blank(place)
        if self.text.startswith(ESCAPE, place):
            return self._escaped(place)
        if self.text.startswith("{", place):
            return self._mapping(place, depth)
        if self.text.startswith("[", place):
            return self._list(place, depth)
        number = _NUMBER.match(self.text, place)
        if number is not None:
            return self._number(number[0]), number.end()
        constant = _CONSTANT.match(self.text, place)
        if constant is not None:
            return _CONSTANTS[constant[0]], constant.end()
        return self._bare(place)

    def _number(self, text: str) -> int | float:
        if re.search(r"[.eE]", text):
            return float(text)
        try:
            return int(text)
        except ValueError:  # Python reads no more than some thousand digits
            raise _BrokenText("a number is too long") from None

    def _escaped(self, place: int) -> tuple[str, int]:
        start = place + len(ESCAPE)
        end = self.text.find(ESCAPE, start)
        if end < 0:
            raise _BrokenText("a text is cut off")
        return self.text[start:end], end + len(ESCAPE)

    def _bare(self, place: int) -> tuple[str, int]:
        """Read text that the model forgot to put between its tokens."""
        match = re.compile(r"[^,{}\[\]<]+").match(self.text, place)
        if match is None:
            raise _BrokenText("the call is cut off, or a value is missing")
        return match[0].strip().strip("\"'"), match.end()

    def _list(self, place: int, depth: int) -> tuple[list[Any], int]:
        values: list[Any] = []
        place = self._blank(place + 1)
        while not self.text.startswith("]", place):
            value, place = self.value(place, depth + 1)
            values.append(value)
            place = self._next(place, "]")
        return values, place + 1

    def _mapping(self, place: int, depth: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        place = self._blank(place + 1)
        while not self.text.startswith("}", place):
            key, place = self._key(place)
            place = self._blank(place)
            if not self.text.startswith(":", place):
                raise _BrokenText(f"a ':' is missing after '{clip(key, 20)}'")
            values[key], place = self.value(place + 1, depth + 1)
            place = self._next(place, "}")
        return values, place + 1

    def _key(self, place: int) -> tuple[str, int]:
        if self.text.startswith(ESCAPE, place):
            return self._escaped(place)
        match = re.compile(r"[^:,{}\[\]<]+").match(self.text, place)
        if match is None:
            raise _BrokenText("the call is cut off, or a key is missing")
        return match[0].strip().strip("\"'"), match.end()

    def _next(self, place: int, close: str) -> int:
        """Return where the next part begins: behind a comma, or at the closing bracket."""
        place = self._blank(place)
        if self.text.startswith(",", place):
            return self._blank(place + 1)
        if not self.text.startswith(close, place):
            raise _BrokenText(f"the call is cut off, or a '{close}' is missing")
        return place

    def _blank(self, place: int) -> int:
        match = _BLANK.match(self.text, place)
        return place if match is None else match.end()


_GRAMMAR = Grammar(re.compile(re.escape(OPEN)), _read)
