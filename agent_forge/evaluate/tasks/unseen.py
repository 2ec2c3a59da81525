"""Bits per byte on text that is in no mix of this project, to see losses that its text hides.

The kinds are `python`, the standard library's top-level modules, one cluster per file; `languages`,
paragraphs in Chinese, German, Russian and Spanish; and `other_languages`, in Arabic, Greek, Polish
and Vietnamese, one cluster per language. A mix may hold other code and other conversations in the
first four languages, and nothing in the last four. The data are held out, so there is no train
split.
"""

import hashlib
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from agent_forge.core.errors import DataError
from agent_forge.core.seeds import numpy_generator
from agent_forge.data.languages import IN_NO_MIX, PARAGRAPHS
from agent_forge.evaluate.task import EvalContext, Task
from agent_forge.evaluate.tasks import text

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# chance: a model that gives every byte the same probability.
TASK = Task(name="unseen", version=2, metric="bits per byte", higher_is_better=False, chance=8.0)
HELD_OUT = ("validation", "search", "test")
PIECES_PER_FILE = 2  # few, because many files show more than many pieces of one
LANGUAGE_SHARE = 4  # one item in four is a paragraph, as long as there are any


def items(split: str, n: int, context: EvalContext) -> list[dict[str, str]]:
    """Return up to `n` pieces of the split, kinds mixed evenly.

    A piece is {"text", "canonical", "cluster", "kind"}.
    """
    if split not in HELD_OUT:
        raise DataError(f"the unseen task has no {split} split; use one of {', '.join(HELD_OUT)}")
    generator = numpy_generator(context.seed, "evaluate", "unseen", split)
    code = [row for row in python_pieces() if held_out_split(row["canonical"]) == split]
    other = _paragraphs(split)
    code, other = ([rows[i] for i in generator.permutation(len(rows))] for rows in (code, other))
    mixed: list[dict[str, str]] = []
    while len(mixed) < n and (code or other):
        take_other = bool(other) and (not code or len(mixed) % LANGUAGE_SHARE == 0)
        mixed.append((other if take_other else code).pop())
    return mixed


def python_pieces(pieces_per_file: int = PIECES_PER_FILE) -> list[dict[str, str]]:
    """Return the first pieces of each top-level module of the standard library that is on disk as
    source.
    """
    rows = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        pieces = text.cut(file.read_text(encoding="utf-8", errors="replace"), text.PIECE_BYTES)
        rows += [
            _row(piece, f"python/{file.name}", "python")
            for piece in pieces[1 : 1 + pieces_per_file]
        ]
    return rows


def _paragraphs(split: str) -> list[dict[str, str]]:
    """Return one paragraph per language."""
    place = HELD_OUT.index(split)
    return [
        _row(paragraphs[place], f"languages/{language}", kind)
        for kind, languages in (("languages", PARAGRAPHS), ("other_languages", IN_NO_MIX))
        for language, paragraphs in languages.items()
    ]


def _row(piece: str, cluster: str, kind: str) -> dict[str, str]:
    return {"text": piece, "canonical": " ".join(piece.split()), "cluster": cluster, "kind": kind}


def held_out_split(canonical: str) -> str:
    """Return the held-out split of a piece, by hash."""
    return HELD_OUT[
        int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:4], "little") % len(HELD_OUT)
    ]


def score(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[Mapping[str, Any]],
    context: EvalContext,
) -> "NDArray[np.float64]":
    """Return (n, 2): the bits and the UTF-8 bytes of each piece."""
    return text.score(model, tokenizer, items, context)
