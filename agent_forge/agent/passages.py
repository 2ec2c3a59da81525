"""Cut text into sentences, and into overlapping passages that know where they stand.

Reads text, writes nothing. A sentence ends with ".", "!" or "?" before white space.
"""

import re
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Piece:
    """Words of a document with single spaces between them; `start` counts characters before."""

    start: int
    text: str


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; one without an end mark is its last."""
    return [sentence for sentence in _SENTENCE_END.split(text.strip()) if sentence]


def split(text: str, limit_words: int, overlap_words: int = 0) -> list[Piece]:
    """Cut text into pieces of at most `limit_words` words, at ends of sentences if possible.

    Every piece after the first begins with the last `overlap_words` words before it, so that what
    stands across a border is found in one piece.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    pieces = []
    for first, end in _ranges(text, spans, limit_words):
        begin = max(0, first - overlap_words)
        words = [text[a:b] for a, b in spans[begin:end]]
        pieces.append(Piece(spans[begin][0], " ".join(words)))
    return pieces


def _ranges(text: str, spans: list[tuple[int, int]], limit: int) -> list[tuple[int, int]]:
    """Return (first word, word after the last) of each piece, without overlap."""
    ranges: list[tuple[int, int]] = []
    begin = sentence = 0
    for number, (_, end) in enumerate(spans, start=1):
        if text[end - 1] not in ".!?" and number < len(spans):
            continue
        # A sentence is words `sentence` to `number`; the piece so far began at word `begin`.
        if sentence > begin and number - begin > limit:
            ranges.append((begin, sentence))
            begin = sentence
        while number - begin > limit:
            ranges.append((begin, begin + limit))
            begin += limit
        sentence = number
    return [*ranges, (begin, len(spans))] if begin < len(spans) else ranges
