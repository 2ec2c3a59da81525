"""The factor of an embedding's rows: 1 for a plain table, the root of the width for Gemma's.

A coded or rounded table keeps the factor of the table that it replaces.
"""

from typing import Any

from torch import Tensor, nn

# transformers' classes with this suffix multiply their rows by `embed_scale`.
SUFFIX = "ScaledWordEmbedding"


def scale_of(module: nn.Module) -> float | None:
    """Return the factor of the rows, or None for an embedding that does anything else to them."""
    own = getattr(module, "row_factor", None)
    if own is not None:
        return float(own)
    if type(module) is nn.Embedding:
        return 1.0
    if isinstance(module, nn.Embedding) and type(module).__name__.endswith(SUFFIX):
        scale: Any = getattr(module, "scalar_embed_scale", None)
        scale = getattr(module, "embed_scale", None) if scale is None else scale
        return None if scale is None else float(scale)
    return None


def scaled(rows: Tensor, factor: float) -> Tensor:
    """Return rows times a factor rounded to their dtype, as transformers multiplies."""
    return rows if factor == 1 else rows * rows.new_tensor(factor)
