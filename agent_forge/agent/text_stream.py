"""Text of an answer as its tokens come, cut so that nothing has to be taken back.

    Detokeniser       tokens to text, never half a character
    StopStrings       text up to the first stop string, never the beginning of one
    SpeechSplitter    text apart from thoughts and calls, never the beginning of a tag

Each has `push`, which returns what is certain, and `end`, which returns what was held back. What is
pushed in any pieces gives the same whole.
"""

import json
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from agent_forge.agent.calls import TAGS, THINK_CLOSE, THINK_OPEN
from agent_forge.data import call_dialects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HALF = "\ufffd"  # a decoder writes this for bytes that are no whole character yet
# Decoders that mend the spaces before punctuation look back over no more characters than these.
MENDED_CHARACTERS = 8
TICK = "`"
Kind = Literal["text", "thought"]
_hidden: "weakref.WeakKeyDictionary[Any, tuple[int, frozenset[int]]]" = weakref.WeakKeyDictionary()


def hidden_ids(tokenizer: "PreTrainedTokenizerFast") -> frozenset[int]:
    """Return the control tokens, except the tags of calls and thoughts."""
    size = len(tokenizer.added_tokens_decoder)
    known = _hidden.get(tokenizer)
    if known is None or known[0] != size:
        control = set(tokenizer.all_special_ids) | {
            number for number, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        tags = {*TAGS, *call_dialects.all_tags()}
        control -= {
            number
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.content in tags
        }
        known = (size, frozenset(control))
        _hidden[tokenizer] = known
    return known[1]


class Detokeniser:
    """Turns the tokens of one answer into text, control tokens left out.

    All that was pushed and the end together are the tokenizer's own decoding of all tokens. A token
    costs a decoding of all tokens so far, microseconds for each thousand of them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        self.tokenizer = tokenizer
        self._hidden = hidden_ids(tokenizer)
        self._mended = MENDED_CHARACTERS if _mends_spaces(tokenizer) else 0
        self._ids: list[int] = []
        self._length = 0  # characters returned

    def push(self, token: int) -> str:
        """Return the text that is certain now."""
        if token in self._hidden:
            return ""
        self._ids.append(token)
        whole = self._text()
        certain = whole.rstrip(HALF)
        return self._advance(whole, len(certain) - self._mended)

    def end(self) -> str:
        """Return the text that was held back."""
        whole = self._text()
        return self._advance(whole, len(whole))

    def _text(self) -> str:
        return str(self.tokenizer.decode(self._ids))

    def _advance(self, whole: str, end: int) -> str:
        new = whole[self._length : max(end, self._length)]
        self._length += len(new)
        return new


def _mends_spaces(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Return whether decoding takes out spaces that an earlier token brought."""
    decoder = tokenizer.backend_tokenizer.decoder
    kind = "" if decoder is None else json.loads(decoder.__getstate__())["type"]
    return kind == "WordPiece" or bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))


class StopStrings:
    """Passes text on up to the stop string that is complete first; `matched` is that string."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = [stop for stop in stops if stop]
        self.matched = ""
        self._buffer = ""

    def push(self, text: str) -> str:
        """Return the text that no stop string can begin in."""
        if self.matched:
            return ""
        self._buffer += text
        ends = [
            (place + len(stop), place, stop)
            for stop in self.stops
            if (place := self._buffer.find(stop)) >= 0
        ]
        if ends:
            _, place, self.matched = min(ends)
            return self._take(place)
        return self._take(len(self._buffer) - held_back(self._buffer, self.stops))

    def end(self) -> str:
        """Return the text that was held back."""
        return "" if self.matched else self._take(len(self._buffer))

    def _take(self, count: int) -> str:
        text, self._buffer = self._buffer[:count], self._buffer[count:]
        return text


def held_back(text: str, marks: Sequence[str]) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark."""
    longest = max(map(len, marks), default=1) - 1
    for count in range(min(longest, len(text)), 0, -1):
        if any(len(mark) > count and mark.startswith(text[-count:]) for mark in marks):
            return count
    return 0


class SpeechSplitter:
    """Splits an assistant's text into what it says and what it thinks; calls are left out.

    From what may begin a call on everything is held back until the text has ended: only then the
    dialect's own file knows which calls are only quoted. White space around the text and around
    thoughts is dropped.

    thinking: the prompt has opened the thoughts already. dialect: how the model writes calls.
    """

    def __init__(self, *, thinking: bool = False, dialect: str = call_dialects.DEFAULT) -> None:
        self.thinking = thinking
        self._speaker = call_dialects.dialect(dialect)
        self.text = ""  # all that was pushed
        self._place = 0  # up to here it was read
        self._holds = False
        self._quoted = False
        self._gap = ""  # white space that is dropped unless more text of its kind follows
        self._has_said = {"text": False, "thought": False}

    def push(self, text: str) -> list[tuple[Kind, str]]:
        """Return the pieces of text and thoughts that are certain now."""
        self.text += text
        return [] if self._holds else self._split(self.text, self._speaker.OPENINGS, is_end=False)

    def end(self) -> list[tuple[Kind, str]]:
        """Return the pieces that were held back."""
        if not self._holds:
            return self._split(self.text, (), is_end=True)
        words, before = self._speaker.scan(self.text).words, self.text[: self._place].lstrip()
        # Where nothing but a call follows, the words end in front of the white space before it.
        rest = words[len(before) :] if words.startswith(before) else ""
        self._holds = False
        return self._split(self.text[: self._place] + rest, (), is_end=True)

    def _split(self, text: str, calls: Sequence[str], *, is_end: bool) -> list[tuple[Kind, str]]:
        pieces: list[tuple[Kind, str]] = []
        while True:
            marks = self._marks(calls)
            places = [(text.find(mark, self._place), mark) for mark in marks]
            place, mark = min((p for p in places if p[0] >= 0), default=(-1, ""))
            if place < 0:
                held = 0 if is_end else held_back(text[self._place :], marks)
                pieces += self._say(text[self._place : len(text) - held])
                self._place = len(text) - held
                return pieces
            tick = mark == TICK
            pieces += self._say(text[self._place : place + tick])
            self._place = place if mark in calls else place + len(mark)
            if mark in calls:
                self._holds = True
                return pieces
            if tick:
                self._quoted = not self._quoted
            else:
                self.thinking, self._gap = mark == THINK_OPEN, ""

    def _marks(self, calls: Sequence[str]) -> list[str]:
        """Return what ends the piece that is being read; quoted thoughts are text."""
        if self.thinking:
            return [THINK_CLOSE]
        return [*calls, TICK] if self._quoted else [*calls, TICK, THINK_OPEN]

    def _say(self, text: str) -> list[tuple[Kind, str]]:
        """Return a piece without the white space at its end, and without that at the beginning."""
        kind: Kind = "thought" if self.thinking else "text"
        text = self._gap + text
        self._gap = text[len(text.rstrip()) :]
        text = text.rstrip()
        if not self._has_said[kind]:
            text = text.lstrip()
        if not text:
            return []
        self._has_said[kind] = True
        return [(kind, text)]
