"""Drop documents that teach little: too short or long, repetitive, in another script, or held out.

Each test returns a word, the reason, that the card of a data set counts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from agent_forge.data.overlap import RUN_WORDS, runs_of
from agent_forge.data.sets.settings import FilterConfig
from agent_forge.data.sets.texts import text_of

LATIN = 0x250  # code points below are Latin letters, accents included
REASONS = ("short", "long", "repetitive", "another script", "held out", "repeated")


def spoken(row: dict[str, Any]) -> str:
    """Return what a row teaches: its text, or the turns of the assistant."""
    if "text" in row:
        return str(row["text"])
    return "\n".join(turn["content"] for turn in row["messages"] if turn["role"] == "assistant")


def reason(row: dict[str, Any], limits: FilterConfig) -> str:
    """Return why a row is dropped: one of REASONS, or "" where it stays."""
    words = text_of(row).split()
    answer = spoken(row)
    if len(words) < limits.min_words or not answer.strip():
        return "short"
    if len(words) > limits.max_words:
        return "long"
    if repeated_share(answer.split()) > limits.repeated_share:
        return "repetitive"
    if latin_share(answer) < limits.english_share:
        return "another script"
    return ""


def repeated_share(words: Sequence[str]) -> float:
    """Return the share of word triples that stood in the text before; 0 without a triple."""
    triples = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(triples)) / len(triples) if triples else 0.0


def latin_share(text: str) -> float:
    """Return the share of letters that are Latin; 1 without a letter, as in arithmetic."""
    letters = [char for char in text if char.isalpha()]
    return sum(ord(char) < LATIN for char in letters) / len(letters) if letters else 1.0


class HeldOut:
    """The runs of 13 words of held-out items; what shares one is not for training."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._known: dict[str, int] = {}
        self._runs = runs_of(texts, self._known)

    def __contains__(self, text: str) -> bool:
        """Return whether a text shares a run of RUN_WORDS words with a held-out item."""
        if len(text.split()) < RUN_WORDS:
            return False
        return bool(np.isin(runs_of([text], self._known), self._runs).any())
