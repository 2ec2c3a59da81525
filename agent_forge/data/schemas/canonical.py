"""When two tools, or two questions, are the same: the form that splits and refusals compare.

A question is what it says, in lower case without punctuation, whatever the tools beside it. A tool
is its name's words and its description, or the structure of its arguments (`draw.structure_key`).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from agent_forge.data.schemas import words


def name_key(name: str) -> str:
    """Return a name as its sorted words: `sendInvoice` and `invoice.send` are the same."""
    return " ".join(sorted(words.split_words(name)))


def text_key(text: str) -> str:
    """Return the words and numbers of a text in lower case; signs between digits stay."""
    return " ".join(re.findall(r"[\w.+-]*\w", text.casefold()))


def question_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return what identifies a conversation: what its user says."""
    return " | ".join(text_key(str(m["content"])) for m in messages if m["role"] == "user")


def without_known(
    rows: Iterable[Mapping[str, Any]], known: Iterable[str]
) -> tuple[list[dict[str, Any]], int]:
    """Return the rows whose questions are not among `known`, and how many were left out."""
    refused = set(known)
    every = [dict(row) for row in rows]
    fresh = [row for row in every if question_key(row["messages"]) not in refused]
    return fresh, len(every) - len(fresh)
