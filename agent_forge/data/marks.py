"""What a row marks as learned: whole turns, or some characters of a turn.

Marks of rows and turns are true or false under one of several names. Characters are marked in two
ways. "train_detail" is axolotl's: a list of {"begin_offset", "end_offset", "train"} that count
characters from 0, the last one included; what no entry covers is not learned. Content in parts,
[{"type": "text", "text", "train"}], has marks in its parts; a part without a mark follows its turn.

A message then has "spans", a list of [start, end) in its content: where the turn is learned, only
these characters are. Its end token belongs to a span that reaches the end of the content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from agent_forge.core.errors import DataError

# A turn is learned when one of these is true (1) …
POSITIVE = (
    "train",
    "training",
    "trainable",
    "learn",
    "loss",
    "loss_mask",
    "weight",
    "loss_weight",
    "label",
)
# … of these, the ones that also make turns of users and tools learned; the others can only leave
# turns out.
FORCING = ("train", "training", "trainable", "learn")
NEGATIVE = ("mask", "masked", "ignore")  # … and left out when one of these is
# whether the turns before the answers are learned too
INPUT = ("train_on_input", "train_on_inputs")
MARKS = (*POSITIVE, *NEGATIVE, *INPUT)
DETAIL = ("train_detail", "training_detail")
PART_MARKS = (*POSITIVE, *NEGATIVE)
_ENTRY = {"begin_offset", "end_offset", "train"}

Span = list[int]


def learns(fields: Mapping[str, Any]) -> bool | None:
    """Return what the marks of a row, turn or part say: True (learned), False (not learned), or
    None (they say nothing).
    """
    said: bool | None = None
    for key in (*POSITIVE, *NEGATIVE):
        if key in fields and not (key == "mask" and isinstance(fields[key], str)):
            value = flag(key, fields[key]) != (key in NEGATIVE)
            if not value:
                return False
            said = True if key in FORCING else said
    return said


def flag(key: str, value: object) -> bool:
    """Return a mark as a truth value. Raises DataError for anything but a boolean, 0 or 1."""
    if isinstance(value, str) and value.lower() in ("true", "false", "0", "1"):
        return value.lower() in ("true", "1")
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise DataError(
        f"'{key}' is {value!r}: a mark says learn or do not learn (true, false, 1, 0); "
        "other weights cannot be honoured, so remove it or make it one of these"
    )


def turn_mark(turn: Mapping[str, Any], role: str) -> bool | None:
    """Return whether a turn's own marks make it learned; None where it has no marks."""
    said = learns(turn)
    for key in INPUT:
        if key in turn and role != "assistant":
            said = flag(key, turn[key]) if said is None else said
    return said


@dataclass(frozen=True, slots=True)
class MarkedText:
    """The marked characters of a turn's own text.

    spans: [start, end) of the characters that are learned where the turn is. forced: a mark makes
    the turn learned, whoever speaks. beside: thoughts and calls beside the text are learned too.
    """

    spans: list[Span]
    forced: bool
    beside: bool

    def placed(self, content: str, shift: int, length: int) -> list[Span]:
        """Return the spans in `content`, in which the turn's own text begins at `shift`."""
        size = len(content)
        spans = [[max(start + shift, 0), min(end + shift, size)] for start, end in self.spans]
        if self.beside:
            spans = [[0, shift], *spans, [shift + length, size]]
        return merged(spans)


def merged(spans: Sequence[Sequence[int]]) -> list[Span]:
    """Return spans in order, without empty ones, those that touch as one."""
    result: list[Span] = []
    for start, end in sorted((start, end) for start, end in spans):
        if result and start <= result[-1][1]:
            result[-1][1] = max(result[-1][1], end)
        elif start < end:
            result.append([start, end])
    return result


def marked_text(turn: Mapping[str, Any], text: str, where: str, role: str) -> MarkedText | None:
    """Return which characters of a turn's text its marks have learned; None without such marks.

    Raises DataError for marks that contradict each other or leave the text.
    """
    details = [key for key in DETAIL if key in turn]
    raw = turn.get("value", turn.get("content"))
    parts = raw if isinstance(raw, list) else []
    in_parts = any(key in part for part in parts for key in PART_MARKS)
    if len(details) + in_parts > 1:
        places = [*details, *(["the parts of its content"] if in_parts else [])]
        raise DataError(f"{where} has marks in {' and '.join(places)}; keep one")
    if details:
        return _of_detail(turn[details[0]], text, f"{where}, '{details[0]}'")
    return _of_parts(parts, role, turn_mark(turn, role)) if in_parts else None


def _of_detail(entries: object, text: str, where: str) -> MarkedText:
    if not isinstance(entries, list):
        raise DataError(f"{where} is a list, got a {type(entries).__name__}")
    learned: list[bool | None] = [None] * len(text)
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, Mapping) or set(entry) != _ENTRY:
            raise DataError(
                f"{where}, entry {number}: an entry has begin_offset, end_offset and train, got "
                f"{str(entry)[:80]}"
            )
        first, last = entry["begin_offset"], entry["end_offset"]
        whole = all(
            isinstance(place, int) and not isinstance(place, bool) for place in (first, last)
        )
        if not whole or not 0 <= first <= last < len(text):
            raise DataError(
                f"{where}, entry {number}: begin_offset {first} and end_offset {last} do not lie "
                f"in a text of {len(text)} characters; both count from 0, and the last character "
                "is included"
            )
        value = flag("train", entry["train"])
        if any(said not in (None, value) for said in learned[first : last + 1]):
            raise DataError(f"{where}, entry {number} contradicts an entry before it")
        learned[first : last + 1] = [value] * (last + 1 - first)
    spans = _runs(learned)
    return MarkedText(spans, forced=bool(spans), beside=False)


def _of_parts(parts: Sequence[Mapping[str, Any]], role: str, turn: bool | None) -> MarkedText:
    said = [learns(part) for part in parts]
    forced = True in said
    # Where a part makes a user's turn learned, the others stay what the turn is: not learned.
    follows = role == "assistant" or turn is True or not forced
    learned = [
        follows if value is None else value
        for part, value in zip(parts, said, strict=True)
        for _ in part["text"]
    ]
    return MarkedText(_runs(learned), forced, beside=role == "assistant")


def _runs(learned: Sequence[bool | None]) -> list[Span]:
    """Return [start, end) of every run of characters that are learned."""
    spans, start = [], 0
    for value, run in groupby(learned, bool):
        end = start + len(list(run))
        spans += [[start, end]] if value else []
        start = end
    return spans


def reaching(
    offsets: Sequence[tuple[int, int]], spans: Sequence[Sequence[int]], shift: int = 0
) -> list[bool]:
    """Return of each token whether it reaches into one of `spans`.

    offsets: [start, end) of each token in its text, which begins at `shift`. Some tokenizers leave
    white space out of them, so that a token begins at latest where the one before it ended.
    """
    result, ended = [], 0
    for start, end in offsets:
        begin = min(start, ended)
        ended = max(end, ended)
        result.append(any(shift + begin < last and shift + end > first for first, last in spans))
    return result
