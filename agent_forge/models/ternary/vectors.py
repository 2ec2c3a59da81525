"""Rows of an embedding as vectors: every `vector` columns are one of 256 codewords, times the row's scale (VQ).

A byte stands for `vector` columns: 4 bits a weight with 2, 2 bits with 4. The codewords are found once by k-means, on
columns and then rows divided by their root mean square (a few columns are several times as large), and all three stay;
while weights train on, each vector takes the codeword nearest to it. Coding what is coded changes nothing. Reads and
writes no file.

Shapes: R rows, width columns, V = width / vector vectors a row, K = 256 codewords.
"""

import torch
from torch import Tensor

from agent_forge.codecs.vptq import assign, kmeans
from agent_forge.core.errors import ConfigError

CODEWORDS = 256
ITERATIONS = 12


def learned(weight: Tensor, vector: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codewords (K, vector), the scale of each row (R, 1) and column (width,), all bfloat16, for weight (R, width).

    Raises ConfigError when vectors do not divide a row.
    """
    if weight.shape[1] % vector:
        raise ConfigError(
            f"embedding_vector={vector} does not divide the embedding's width {weight.shape[1]}; try embedding_vector=2"
        )
    columns = weight.detach().float().square().mean(0).sqrt().to(torch.bfloat16)
    unit = weight.detach().float() / columns.float().clamp_min(1e-30)
    scales = unit.square().mean(1, keepdim=True).sqrt().to(torch.bfloat16)
    vectors = _vectors(weight.detach(), scales, columns, vector).flatten(0, 1)
    found, _ = kmeans(vectors, torch.ones_like(vectors), CODEWORDS, ITERATIONS)
    return found.to(torch.bfloat16), scales, columns


def chosen(weight: Tensor, codewords: Tensor, scales: Tensor, columns: Tensor) -> Tensor:
    """Return the index of the nearest codeword for each vector of weight (..., width): (..., V) uint8."""
    vectors = _vectors(weight, scales, columns, codewords.shape[1])
    flat = vectors.flatten(0, -2)
    found = assign(flat, torch.ones_like(flat), codewords.float())
    return found.to(torch.uint8).view(vectors.shape[:-1])


def values(indices: Tensor, codewords: Tensor, scales: Tensor, columns: Tensor) -> Tensor:
    """Return the rows (..., width) float32 that indices (..., V), scales (..., 1) and columns (width,) stand for."""
    return codewords.float()[indices.long()].flatten(-2) * scales.float() * columns.float()


def _vectors(weight: Tensor, scales: Tensor, columns: Tensor, vector: int) -> Tensor:
    """Return weight (..., width) divided by both scales and cut: (..., V, vector)."""
    unit = weight.float() / columns.float().clamp_min(1e-30) / scales.float().clamp_min(1e-30)
    return unit.unflatten(-1, (-1, vector))
