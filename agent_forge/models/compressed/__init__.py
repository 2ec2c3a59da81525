"""Compressed models: linears, embeddings and other matrices kept as codes, made dense one layer at a time.

    quantiser.py      `compress`, and the quantiser through which plain `from_pretrained` opens what it writes
    layers.py         linears and embeddings that hold codes
    tensors.py        what a codec can take of a model, by name
    dense_weights.py  dense weights while a model generates, where they are faster

What other rooms need is named here; transformers learns of the quantiser through `register`.
"""

from agent_forge.models.compressed.dense_weights import decoding
from agent_forge.models.compressed.layers import Coded, CompressedEmbedding, CompressedLinear
from agent_forge.models.compressed.quantiser import CompressedConfig, CompressedHfQuantizer, compress, register
from agent_forge.models.compressed.tensors import (
    as_matrix,
    can_be_coded,
    coded_modules,
    coded_tensors,
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
