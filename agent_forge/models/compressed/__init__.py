"""Compressed models: linears, embeddings and other matrices kept as codes.

    quantiser.py      `compress`, and the quantiser with which `from_pretrained` opens its models
    layers.py         linears and embeddings that hold codes
    tensors.py        the tensors of a model that a codec accepts, by name
    dense_weights.py  dense weights while a model generates, where they are faster

One layer at a time is made dense. The names below are for other rooms; `register` makes the
quantiser known to transformers.
"""

from agent_forge.models.compressed.dense_weights import decoding
from agent_forge.models.compressed.layers import Coded, CompressedEmbedding, CompressedLinear
from agent_forge.models.compressed.quantiser import (
    CompressedConfig,
    CompressedHfQuantizer,
    compress,
    register,
)
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
