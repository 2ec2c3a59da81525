"""Code: pieces of about 320 bytes of the standard library's top-level modules (PSF licence).

Mixes hold sub-packages only (`data.packaged`). A module is a cluster.
"""

from typing import Any

from agent_forge.evaluate import domain
from agent_forge.evaluate.task import EvalContext
from agent_forge.evaluate.tasks.unseen import held_out_split, python_pieces

TASK = domain.domain_task("code")
PIECES_PER_FILE = 4
score = domain.score


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` pieces of the split: {"text", "canonical", "cluster", "kind"}."""
    pieces = python_pieces(PIECES_PER_FILE)
    rows: list[dict[str, Any]] = [
        row for row in pieces if held_out_split(row["canonical"]) == split
    ]
    return domain.chosen(TASK.name, rows, n, split, context)
