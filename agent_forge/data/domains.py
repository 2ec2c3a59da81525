"""Texts of domains that no other kind of data holds: English conversations as chats.

The conversations come from chatterbot-corpus (BSD). The hash of a conversation decides its
split, so training and evaluation share none.
"""

from typing import Any

from agent_forge.data.documents import split_of
from agent_forge.data.packaged import english_conversations

SPEAKERS = ("user", "assistant")  # turns alternate


def conversations(split: str) -> list[dict[str, Any]]:
    """Return the distinct conversations of a split: {"messages", "canonical", "cluster": topic}.

    Raises DataError where chatterbot_corpus is not installed.
    """
    rows: dict[str, dict[str, Any]] = {}
    for topic, turns in english_conversations():
        canonical = f"chat/{' | '.join(turns).casefold()}"
        if split_of(canonical) == split:
            messages = [
                {"role": SPEAKERS[place % 2], "content": turn} for place, turn in enumerate(turns)
            ]
            row = {"messages": messages, "canonical": canonical, "cluster": f"chat/{topic}"}
            rows.setdefault(canonical, row)
    return [rows[key] for key in sorted(rows)]
