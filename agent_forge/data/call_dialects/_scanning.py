"""What the dialects share: find calls outside quotations and thoughts, and read loose JSON."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent_forge.data.calls import THINK_CLOSE, THINK_OPEN, BrokenCall, Call


@dataclass(frozen=True, slots=True)
class Scan:
    """A message taken apart: its words, and its calls in order."""

    words: str
    calls: list[Call | BrokenCall] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Body:
    """The calls behind an opening; what follows them begins at `after`.

    calls is None where the text only looked like a call and is words.
    """

    calls: list[Call | BrokenCall] | None
    after: int


# (text, the match of the opening, whether the text was cut) -> what stands there
Reader = Callable[[str, re.Match[str], bool], Body]


@dataclass(frozen=True, slots=True)
class Grammar:
    """How a dialect's calls are found.

    opening: the text that begins calls. read: reads what it begins. skip: where a call's own text
    ends, for backticks inside it; by default where `read` says.
    """

    opening: re.Pattern[str]
    read: Reader
    skip: Callable[[str, re.Match[str]], int] | None = None

    def pieces(self, text: str, cut: bool) -> list[tuple[str, Body | None]]:
        """Return (words, the calls that follow them, or None at the end) of a text, in order."""
        marks = re.compile(f"(?P<call>{self.opening.pattern})|{THINK_OPEN}|{THINK_CLOSE}|`+")
        pieces: list[tuple[str, Body | None]] = []
        done = place = 0
        thought = False
        while (mark := marks.search(text, place)) is not None:
            place = mark.end()
            if mark["call"] is not None:
                body = self.read(text, mark, cut)
                if body.calls is None:
                    continue
                pieces.append((text[done : mark.start()], body))
                done = place = body.after
            elif mark[0] == THINK_OPEN:
                thought = True
                close = text.find(THINK_CLOSE, place)
                place = len(text) if close < 0 else close + len(THINK_CLOSE)
            elif mark[0] == THINK_CLOSE and not thought:
                # Some templates open the thoughts in the prompt: everything so far was thought,
                # and calls quoted there stay words.
                thought = True
                pieces, done = [], 0
            elif mark[0].startswith("`"):
                place = self._end_of_quote(text, mark)
        return [*pieces, (text[done:], None)]

    def scan(self, text: str, cut: bool) -> Scan:
        """Return the words and calls of a text."""
        pieces = self.pieces(text, cut)
        calls = [call for _, body in pieces if body is not None for call in body.calls or ()]
        return Scan("".join(words for words, _ in pieces).strip(), calls)

    def _end_of_quote(self, text: str, opening: re.Match[str]) -> int:
        """Return where the code that backticks open ends, or the place right behind them.

        As in Markdown, the same number of backticks closes it, and a fence of three that is never
        closed reaches to the end of the text.
        """
        marks = re.compile(f"`+|(?P<call>{self.opening.pattern})")
        ticks, place = opening[0], opening.end()
        while (mark := marks.search(text, place)) is not None:
            if mark[0] == ticks:
                return mark.end()
            # Backticks inside the strings of a call do not close the quotation.
            place = self._skipped(text, mark) if mark["call"] is not None else mark.end()
        return len(text) if len(ticks) >= 3 else opening.end()

    def _skipped(self, text: str, mark: re.Match[str]) -> int:
        if self.skip is not None:
            return self.skip(text, mark)
        body = self.read(text, mark, False)
        whole = body.calls and not any(isinstance(call, BrokenCall) for call in body.calls)
        return max(body.after, mark.end()) if whole else mark.end()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


DECODER = json.JSONDecoder(strict=False, parse_constant=_no_constant)


def decode(text: str) -> Any:
    """Return the JSON value of a text. Raises ValueError or RecursionError where it is not one."""
    value, end = DECODER.raw_decode(text.strip())
    if text.strip()[end:]:
        raise ValueError("more than one value")
    return value


def not_json(value: Any) -> str:
    """Return what in a value JSON cannot write: half characters, infinities, other types; or ""."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return f"half of a surrogate pair (\\u{ord(value[error.start]):04x})"
        return ""
    if isinstance(value, dict):
        return next(
            filter(None, (not_json(part) for pair in value.items() for part in pair)), ""
        ) or ("" if all(isinstance(key, str) for key in value) else "a key that is not a string")
    if isinstance(value, list):
        return next(filter(None, map(not_json, value)), "")
    if (
        value is None
        or isinstance(value, bool | int)
        or (isinstance(value, float) and math.isfinite(value))
    ):
        return ""
    return f"{clip(repr(value))}, which is not JSON"


def checked(name: str, arguments: Any, body: str) -> Call | BrokenCall:
    """Return a call of these parts, or why it is none."""
    if not name.strip():
        return BrokenCall(body, f"the call names no tool: {clip(body)}")
    if not isinstance(arguments, dict):
        return BrokenCall(
            body,
            f"arguments of {clip(name)} must be a JSON object, got {clip(str(arguments))}",
        )
    wrong = not_json([name, arguments])
    if wrong:
        return BrokenCall(
            body, f"the call of {clip(name)} holds {wrong}; write the character or number itself"
        )
    return Call(name.strip(), arguments)


def clip(text: str, limit: int = 80) -> str:
    """Return a text on one line, shortened, with half characters escaped."""
    text = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
