"""What an embedding multiplies its rows by: 1 for a plain table, the root of the width for Gemma's.

A table that is coded or rounded keeps that number, so it computes as the one that it stands for.
"""

from typing import Any

from torch import Tensor, nn

SUFFIX = "ScaledWordEmbedding"  # of transformers' classes whose rows are multiplied by `embed_scale`


def scale_of(module: nn.Module) -> float | None:
    """Return what rows are multiplied by, or None for an embedding that does something else besides."""
    own = getattr(module, "row_factor", None)
    if own is not None:
        return float(own)
    if type(module) is nn.Embedding:
        return 1.0
    if isinstance(module, nn.Embedding) and type(module).__name__.endswith(SUFFIX):
        found: Any = getattr(module, "scalar_embed_scale", None)
        found = getattr(module, "embed_scale", None) if found is None else found
        return None if found is None else float(found)
    return None


def scaled(rows: Tensor, factor: float) -> Tensor:
    """Return rows times a factor rounded to their dtype, as transformers multiplies."""
    return rows if factor == 1 else rows * rows.new_tensor(factor)
