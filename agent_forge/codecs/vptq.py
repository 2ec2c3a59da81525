"""VPTQ: vectors of v neighbouring weights of a row are entries of a codebook of k centroids.

Reads a matrix, optionally with the Hessian of the layer's inputs: its diagonal weighs the k-means, and errors of coded
columns are compensated in those still to come. Bits: log2(k)/v, plus the codebook, plus one scale a row.
Source: arXiv:2409.17066. No residual codebook and no outlier columns here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.codecs.compensate import compensate, pad_columns
from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError

FIT_VECTORS = 1 << 16  # k-means sees at most this many vectors, evenly spread
CHUNK_VECTORS = 1 << 16


@dataclass(slots=True, kw_only=True)
class Settings:
    """vector: weights an index. codebook: centroids, at most 256 (an index is a byte). iterations: of k-means."""

    vector: int = 4
    codebook: int = 256
    iterations: int = 12

    def __post_init__(self) -> None:
        if not 2 <= self.codebook <= 256:
            raise ConfigError(f"codec vptq: codebook must be in 2..256, got {self.codebook}")
        if self.vector < 1:
            raise ConfigError(f"codec vptq: vector must be at least 1, got {self.vector}")


def encode(weight: Tensor, settings: Settings, hessian: Tensor | None) -> tuple[Parts, dict[str, Any]]:
    """Return indices (rows, vectors) uint8, the codebook (k, v) float16 and scales (rows,) float16."""
    rows, v = weight.shape[0], settings.vector
    scales = weight.float().square().mean(1).sqrt().clamp(6.2e-5, 6.5e4).half().float()
    unit, wide = pad_columns(weight.float() / scales[:, None], hessian, v)
    importance = (
        torch.ones(unit.shape[1]) if wide is None else wide.diagonal().clamp_min(1e-9 * float(wide.trace()) + 1e-30)
    )
    importance = importance / importance.mean()
    vectors = unit.reshape(-1, v)
    weights = importance.view(-1, v).expand(rows, -1, -1).reshape(-1, v)
    codebook, _ = kmeans(vectors, weights, settings.codebook, settings.iterations)
    codebook = codebook.half().float()
    if wide is None:
        indices = assign(vectors, weights, codebook).view(rows, -1)
    else:
        indices = _compensated(unit, wide, importance, codebook, v)
    parts: Parts = {
        "i": indices.to(torch.uint8).numpy(),
        "c": codebook.half().numpy(),
        "s": scales.half().numpy(),
    }
    return parts, {}


def _compensated(unit: Tensor, hessian: Tensor, importance: Tensor, codebook: Tensor, v: int) -> Tensor:
    indices = torch.empty(unit.shape[0], unit.shape[1] // v, dtype=torch.long)

    def quantise(block: Tensor, first: int) -> Tensor:
        chosen = assign(block, importance[first : first + v].expand(len(block), -1), codebook)
        indices[:, first // v] = chosen
        return codebook[chosen]

    compensate(unit, hessian, quantise, step=v, lazy=v * max(1, 128 // v))
    return indices


def kmeans(vectors: Tensor, weights: Tensor, k: int, iterations: int) -> tuple[Tensor, list[float]]:
    """Return centroids (k, v) of vectors (n, v) with a weight for every entry (n, v), and the objective a step.

    Starts from evenly spaced vectors in order of size, so it draws no random number. A centroid that nobody chose moves
    to the vector that is coded worst.
    """
    stride = -(-len(vectors) // FIT_VECTORS)
    vectors, weights = vectors[::stride], weights[::stride]
    order = (vectors.square().sum(1) * vectors[:, 0].sign()).argsort(stable=True)
    centroids = vectors[order[torch.linspace(0, len(order) - 1, k).long()]].clone()
    objective: list[float] = []
    for _ in range(iterations):
        chosen = assign(vectors, weights, centroids)
        errors = (weights * (vectors - centroids[chosen]).square()).sum(1)
        objective.append(float(errors.sum()))
        total = torch.zeros_like(centroids).index_add_(0, chosen, weights * vectors)
        mass = torch.zeros_like(centroids).index_add_(0, chosen, weights)
        empty = torch.bincount(chosen, minlength=k) == 0
        centroids = torch.where(empty[:, None], centroids, total / mass.clamp_min(1e-30))
        missing = int(empty.sum())
        if missing:
            worst = errors.topk(min(missing, len(errors))).indices
            centroids[empty.nonzero().flatten()[: len(worst)]] = vectors[worst]
    return centroids, objective


def assign(vectors: Tensor, weights: Tensor, centroids: Tensor) -> Tensor:
    """Return for each vector (n, v) the index of the centroid at least weighted distance: (n,) int64."""
    squares, doubles = centroids.square().T, (2 * centroids).T
    found = [
        (w @ squares - (w * x) @ doubles).argmin(1)
        for x, w in zip(vectors.split(CHUNK_VECTORS), weights.split(CHUNK_VECTORS), strict=True)
    ]
    return torch.cat(found)


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"i": (rows, vectors) uint8, "c": (k, v) float32, "s": (rows,) float32}."""
    del meta, shape
    scales, codebook = parts["s"].astype(np.float32), parts["c"].astype(np.float32)
    return {"i": torch.from_numpy(parts["i"].copy()), "c": torch.from_numpy(codebook), "s": torch.from_numpy(scales)}


def dense(tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    del meta
    indices, scales = (tensors[key] if rows is None else tensors[key][rows] for key in ("i", "s"))
    values = tensors["c"].float()[indices.int()].flatten(1)[:, : shape[1]]
    return values * scales[:, None].float()
