"""Rows of an embedding as vectors: every `vector` columns are one of 256 codewords, times the row's scale (VQ).

A byte stands for `vector` columns: 4 bits a weight with 2, 2 bits with 4. The codewords are found once by k-means, on rows
divided by their root mean square, and stay; while weights train on, each vector takes the codeword nearest to it. Coding
what is coded changes nothing. Reads and writes no file.

Shapes: R rows, width columns, V = width / vector vectors a row, K = 256 codewords.
"""

import torch
from torch import Tensor

from agent_forge.codecs.vptq import assign, kmeans
from agent_forge.core.errors import ConfigError

CODEWORDS = 256
ITERATIONS = 12
VECTORS = (0, 2, 4, 8)  # columns a codeword; 0: no vectors


def learned(weight: Tensor, vector: int) -> tuple[Tensor, Tensor]:
    """Return codewords (K, vector) and the scale of each row (R, 1), both bfloat16, for weight (R, width).

    Raises ConfigError when vectors do not divide a row.
    """
    if weight.shape[1] % vector:
        raise ConfigError(
            f"embedding_vector={vector} does not divide the embedding's width {weight.shape[1]}; try embedding_vector=2"
        )
    scales = weight.detach().float().square().mean(1, keepdim=True).sqrt().to(torch.bfloat16)
    vectors = _vectors(weight.detach(), scales, vector).flatten(0, 1)
    found, _ = kmeans(vectors, torch.ones_like(vectors), CODEWORDS, ITERATIONS)
    return found.to(torch.bfloat16), scales


def chosen(weight: Tensor, codewords: Tensor, scales: Tensor) -> Tensor:
    """Return the index of the nearest codeword for each vector of weight (..., width): (..., V) uint8."""
    vectors = _vectors(weight, scales, codewords.shape[1])
    flat = vectors.flatten(0, -2)
    found = assign(flat, torch.ones_like(flat), codewords.float())
    return found.to(torch.uint8).view(vectors.shape[:-1])


def values(indices: Tensor, codewords: Tensor, scales: Tensor) -> Tensor:
    """Return the rows (..., width) float32 that indices (..., V) and scales (..., 1) stand for."""
    return codewords.float()[indices.long()].flatten(-2) * scales.float()


def _vectors(weight: Tensor, scales: Tensor, vector: int) -> Tensor:
    """Return weight (..., width) divided by its scales and cut: (..., V, vector)."""
    return (weight.float() / scales.float().clamp_min(1e-30)).unflatten(-1, (-1, vector))
