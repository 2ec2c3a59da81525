"""Rows of conversations as people publish them, read from files as messages.

A row becomes the same list of {"role", "content"} whatever its dialect (`dialects.py`) and file
format (`files.py`), and belongs to one split by the hash of that.
"""

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from agent_forge.core.errors import DataError
from agent_forge.data.dialects import SPEAKERS, Message, dialect, messages
from agent_forge.data.documents import split_of
from agent_forge.data.files import UTF8, read_rows

__all__ = ["SPEAKERS", "check_source", "conversations", "dialect", "key_of", "messages", "read"]

CHECKED_ROWS = 2000  # how many rows of a source are read before work starts


def read(
    names: Sequence[str],
    split: str,
    mask_roles: Collection[str] = ("assistant",),
    *,
    encoding: str = UTF8,
    ignored: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Return the distinct rows of `split` of all sources that teach something, each with its
    "messages".

    A row whose marks leave no turn to learn is passed over. Raises DataError for a row that has no
    turn of `mask_roles` in the first place, and when no row is left.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for name in names:
        for _, turns in conversations(name, mask_roles, encoding=encoding, ignored=ignored):
            key = key_of(turns)
            if split_of(key) == split and is_learned(turns, mask_roles):
                chosen.setdefault(key, {"messages": turns})
    if not chosen:
        raise DataError(
            f"data.rows={list(names)}: no row for the {split} split; give more rows (a split takes "
            "8% to 76% of them)"
        )
    return [chosen[key] for key in sorted(chosen)]


def is_learned(turns: Sequence[Message], mask_roles: Collection[str]) -> bool:
    """Return whether any turn is learned: by its own mark, else by its role."""
    return any(turn.get("learn", turn["role"] in mask_roles) for turn in turns)


def last_turn_alone(turns: Sequence[Message], mask_roles: Collection[str]) -> list[Message]:
    """Return the turns with marks, by which only the last learned one is learned."""
    learned = [i for i, turn in enumerate(turns) if turn.get("learn", turn["role"] in mask_roles)]
    last = learned[-1] if learned else -1
    return [{**turn, "learn": place == last} for place, turn in enumerate(turns)]


def key_of(turns: list[Message]) -> str:
    """Return what identifies a conversation: two rows with the same turns are one."""
    return json.dumps(turns, sort_keys=True)


def conversations(
    name: str,
    mask_roles: Collection[str] = ("assistant",),
    *,
    encoding: str = UTF8,
    ignored: Collection[str] = (),
) -> Iterator[tuple[Mapping[str, Any], list[Message]]]:
    """Yield every row of one source as it stands there, and its turns.

    Raises DataError naming file and row.
    """
    for where, row in read_rows(name, encoding):
        try:
            turns = messages(row, ignored)
            # Marks may leave out all turns on purpose; a row that never had a turn to learn is a
            # mistake.
            if not any("learn" in turn or turn["role"] in mask_roles for turn in turns):
                raise DataError(
                    f"no token is trained: there is no turn of {', '.join(mask_roles)}; complete "
                    "the row or remove it"
                )
        except DataError as error:
            raise DataError(f"data.rows: {where}: {error}") from None
        yield row, turns


def check_source(name: str, encoding: str = UTF8, ignored: Collection[str] = ()) -> None:
    """Read the first rows of one source.

    Raises DataError for one that cannot be used; a hub name is not looked up.
    """
    if not name.startswith("hf:"):
        for _ in itertools.islice(
            conversations(name, encoding=encoding, ignored=ignored), CHECKED_ROWS
        ):
            pass
