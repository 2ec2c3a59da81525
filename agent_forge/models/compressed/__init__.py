"""Compressed models: linears, embeddings and other matrices kept as codes, made dense one layer at a time.

What other rooms need is named here; transformers learns of the quantiser through `register`.
"""

from agent_forge.models.compressed.quantiser import (
    Coded,
    CompressedConfig,
    CompressedEmbedding,
    CompressedHfQuantizer,
    CompressedLinear,
    as_matrix,
    can_be_coded,
    coded_modules,
    coded_tensors,
    compress,
    decoding,
    register,
    tied_modules,
)

__all__ = [
    "Coded",
    "CompressedConfig",
    "CompressedEmbedding",
    "CompressedHfQuantizer",
    "CompressedLinear",
    "as_matrix",
    "can_be_coded",
    "coded_modules",
    "coded_tensors",
    "compress",
    "decoding",
    "register",
    "tied_modules",
]
