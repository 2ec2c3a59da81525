"""Ternary models (1.58 bit): linear layers with trainable ternary weights, rounded embeddings, packed files.

What other rooms need is named here; transformers learns of the quantiser through `register`.
"""

from agent_forge.models.ternary.checkpoint import save_packed
from agent_forge.models.ternary.embedding import Grid, RoundedEmbedding, RoundedHead
from agent_forge.models.ternary.packing import multiply_out
from agent_forge.models.ternary.quantiser import (
    ROW,
    TENSOR,
    TernaryConfig,
    TernaryHfQuantizer,
    TernaryLinear,
    TernarySettings,
    cells_for,
    is_skipped,
    latents_for,
    quantise_activations,
    refuse_norm,
    register,
    round_embeddings,
    rounded_embeddings,
    set_blend,
    ternarise,
    ternary_codes,
    ternary_layers,
    ternary_weight,
)

__all__ = [
    "ROW",
    "TENSOR",
    "Grid",
    "RoundedEmbedding",
    "RoundedHead",
    "TernaryConfig",
    "TernaryHfQuantizer",
    "TernaryLinear",
    "TernarySettings",
    "cells_for",
    "is_skipped",
    "latents_for",
    "multiply_out",
    "quantise_activations",
    "refuse_norm",
    "register",
    "round_embeddings",
    "rounded_embeddings",
    "save_packed",
    "set_blend",
    "ternarise",
    "ternary_codes",
    "ternary_layers",
    "ternary_weight",
]
