"""Ternary models (1.58 bit): layers with trainable ternary weights, rounded embeddings, packed
files.

    quantiser.py   `ternarise`, and the quantiser with which `from_pretrained` opens its models
    layer.py       the linear layer
    install.py     put layers into a model, and list them
    codes.py       codes, scales and latents
    embedding.py   embeddings and heads on a grid of integers
    packing.py     codes in bytes, and the packed file
    checkpoint.py  a packed file as a Hugging Face directory

The settings are in agent_forge/config/ternary.py. The names below are for other rooms; `register`
makes the quantiser known to transformers.
"""

from agent_forge.config.ternary import ROW, TENSOR, CodeGrid, TernarySettings
from agent_forge.models.ternary.checkpoint import save_packed
from agent_forge.models.ternary.codes import (
    latents_for,
    multiply_out,
    project_latents,
    quantise_activations,
    ternary_codes,
    ternary_weight,
)
from agent_forge.models.ternary.embedding import RoundedEmbedding, RoundedHead, grid
from agent_forge.models.ternary.install import (
    is_skipped,
    rounded_embeddings,
    set_blend,
    ternary_layers,
)
from agent_forge.models.ternary.layer import TernaryLinear, refuse_norm
from agent_forge.models.ternary.quantiser import (
    TernaryConfig,
    TernaryHfQuantizer,
    register,
    round_embeddings,
    ternarise,
)

__all__ = [
    "ROW",
    "TENSOR",
    "CodeGrid",
    "RoundedEmbedding",
    "RoundedHead",
    "TernaryConfig",
    "TernaryHfQuantizer",
    "TernaryLinear",
    "TernarySettings",
    "grid",
    "is_skipped",
    "latents_for",
    "multiply_out",
    "project_latents",
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
