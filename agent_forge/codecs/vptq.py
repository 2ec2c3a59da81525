"""VPTQ: vectors of v neighbouring weights of a row are entries of a codebook of k centroids.

Reads a matrix, optionally with the Hessian of the layer's inputs: its diagonal weighs the k-means,
and errors of coded columns are compensated in those still to come. Two additions of the paper are
settings: a second codebook for what the first leaves of each vector (`residual`), and the columns
of largest Hessian diagonal coded first and finer, by a codebook of pairs of their own (`outliers`).
Bits per weight: (log2 k + log2 residual)/v, plus the codebooks, plus one scale per row.
Source: arXiv:2409.17066.
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
LAZY_COLUMNS = 128  # columns coded before the rest of the matrix is updated
OUTLIER_VECTOR, OUTLIER_CENTROIDS = 2, 256  # four bits per weight


@dataclass(slots=True, kw_only=True)
class Settings:
    """vector: weights per index.

    codebook: centroids, at most 256 (an index is a byte). iterations: steps of k-means.

    residual: centroids of the second codebook, 0 for none. outliers: share of the columns that are
    coded apart.
    """

    vector: int = 4
    codebook: int = 256
    iterations: int = 12
    residual: int = 0
    outliers: float = 0.0

    def __post_init__(self) -> None:
        if not 2 <= self.codebook <= 256:
            raise ConfigError(f"codec vptq: codebook must be in 2..256, got {self.codebook}")
        if self.vector < 1:
            raise ConfigError(f"codec vptq: vector must be at least 1, got {self.vector}")
        if self.residual and not 2 <= self.residual <= 256:
            raise ConfigError(f"codec vptq: residual must be 0 or in 2..256, got {self.residual}")
        if not 0 <= self.outliers <= 0.5:
            raise ConfigError(f"codec vptq: outliers must be in [0, 0.5], got {self.outliers}")


@dataclass(slots=True)
class Stages:
    """Codebooks (k, v) that are applied one after another, each to the error that the last one
    left.
    """

    books: list[Tensor]

    @classmethod
    def fit(cls, vectors: Tensor, weights: Tensor, sizes: list[int], iterations: int) -> "Stages":
        """Return codebooks of `sizes` centroids for vectors (n, v) with a weight for every entry
        (n, v).
        """
        books, left = [], vectors
        for size in sizes:
            centroids, _ = kmeans(left, weights, size, iterations)
            books.append(centroids.half().float())
            left = left - books[-1][assign(left, weights, books[-1])]
        return cls(books)

    def code(self, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return indices (n, stages) and the coded vectors (n, v)."""
        coded, indices = torch.zeros_like(vectors), []
        for book in self.books:
            indices.append(assign(vectors - coded, weights, book))
            coded = coded + book[indices[-1]]
        return torch.stack(indices, 1), coded


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None
) -> tuple[Parts, dict[str, Any]]:
    """Return indices (rows, vectors) uint8, the codebook (k, v) float16 and scales (rows,) float16.

    With a residual also its indices "r" and codebook "d"; with outliers their columns "o", indices
    "x" and codebook "p".
    """
    scales = weight.float().square().mean(1).sqrt().clamp(6.2e-5, 6.5e4).half().float()
    unit = weight.float() / scales[:, None]
    parts: Parts = {}
    apart = _outlier_columns(unit, hessian, settings.outliers)
    if len(apart):
        unit, hessian = _code_outliers(unit, hessian, apart, settings.iterations, parts)
    unit, wide = pad_columns(unit, hessian, settings.vector)
    sizes = [settings.codebook, settings.residual] if settings.residual else [settings.codebook]
    indices, books = _coded(unit, wide, settings.vector, sizes, settings.iterations)
    parts |= {
        "i": indices[..., 0].to(torch.uint8).cpu().numpy(),
        "c": books[0].half().cpu().numpy(),
        "s": scales.half().cpu().numpy(),
    }
    if settings.residual:
        parts |= {
            "r": indices[..., 1].to(torch.uint8).cpu().numpy(),
            "d": books[1].half().cpu().numpy(),
        }
    return parts, {}


def _outlier_columns(unit: Tensor, hessian: Tensor | None, share: float) -> Tensor:
    """Return the columns to code apart, in order: an even number, the ones that weigh most in the
    loss.
    """
    columns = unit.shape[1]
    count = (
        min(OUTLIER_VECTOR * round(share * columns / OUTLIER_VECTOR + 0.5), columns - 1)
        if share
        else 0
    )
    count -= count % OUTLIER_VECTOR
    weights = unit.square().mean(0) if hessian is None else hessian.diagonal()
    return weights.topk(count).indices.sort().values


def _code_outliers(
    unit: Tensor, hessian: Tensor | None, apart: Tensor, iterations: int, parts: Parts
) -> tuple[Tensor, Tensor | None]:
    """Code the columns `apart` into `parts`; return the other columns, compensated, and their
    Hessian.

    With the outliers fixed and the others at their optimum, what an error of the others costs is
    their own block of H.
    """
    rest = _others(unit.shape[1], apart)
    order = torch.cat([apart, rest])
    moved = unit[:, order]
    turned = None if hessian is None else hessian[order][:, order].contiguous()
    first = turned if turned is None else turned[: len(apart), : len(apart)].contiguous()
    weights = _importance(first, unit[:, : len(apart)])
    pairs = weights.view(-1, OUTLIER_VECTOR).expand(len(unit), -1, -1).reshape(-1, OUTLIER_VECTOR)
    book = Stages.fit(
        moved[:, : len(apart)].reshape(-1, OUTLIER_VECTOR), pairs, [OUTLIER_CENTROIDS], iterations
    )  # fmt: skip
    indices = unit.new_empty(len(unit), len(apart) // OUTLIER_VECTOR, dtype=torch.uint8)

    def quantise(block: Tensor, start: int) -> Tensor:
        if start >= len(apart):
            return block
        code_indices, coded = book.code(
            block, weights[start : start + OUTLIER_VECTOR].expand(len(block), -1)
        )
        indices[:, start // OUTLIER_VECTOR] = code_indices[:, 0]
        return coded

    if turned is None:
        for start in range(0, len(apart), OUTLIER_VECTOR):
            quantise(moved[:, start : start + OUTLIER_VECTOR], start)
    else:
        moved, wide = pad_columns(moved, turned, OUTLIER_VECTOR)
        assert wide is not None
        moved = compensate(moved, wide, quantise, step=OUTLIER_VECTOR, lazy=LAZY_COLUMNS)
    parts |= {
        "o": apart.cpu().numpy().astype(np.uint16),
        "x": indices.cpu().numpy(),
        "p": book.books[0].half().cpu().numpy(),
    }
    others = slice(len(apart), len(order))
    return moved[:, others], None if turned is None else turned[others, others].contiguous()


def _others(columns: int, apart: Tensor) -> Tensor:
    """Return the columns that are not in `apart`, in order."""
    is_other = torch.ones(columns, dtype=torch.bool, device=apart.device)
    is_other[apart.long()] = False
    return is_other.nonzero().flatten()


def _importance(hessian: Tensor | None, unit: Tensor) -> Tensor:
    """Return the weight of each column of `unit` (rows, columns) in the k-means, with mean 1:
    (columns,).
    """
    if hessian is None:
        return torch.ones_like(unit[0])
    weights = hessian.diagonal().clamp_min(1e-9 * float(hessian.trace()) + 1e-30)
    return weights / weights.mean()


def _coded(
    unit: Tensor, hessian: Tensor | None, v: int, sizes: list[int], iterations: int
) -> tuple[Tensor, list[Tensor]]:
    """Return indices (rows, vectors, stages) of unit (rows, columns), a multiple of v, and the
    codebooks.
    """
    rows = len(unit)
    importance = _importance(hessian, unit)
    vectors = unit.reshape(-1, v)
    weights = importance.view(-1, v).expand(rows, -1, -1).reshape(-1, v)
    stages = Stages.fit(vectors, weights, sizes, iterations)
    if hessian is None:
        return stages.code(vectors, weights)[0].view(rows, -1, len(sizes)), stages.books
    indices = unit.new_empty(rows, unit.shape[1] // v, len(sizes), dtype=torch.long)

    def quantise(block: Tensor, first: int) -> Tensor:
        indices[:, first // v], coded = stages.code(
            block, importance[first : first + v].expand(rows, -1)
        )
        return coded

    compensate(unit, hessian, quantise, step=v, lazy=v * max(1, LAZY_COLUMNS // v))
    return indices, stages.books


def kmeans(vectors: Tensor, weights: Tensor, k: int, iterations: int) -> tuple[Tensor, list[float]]:
    """Return centroids (k, v) of vectors (n, v) weighted by entry (n, v), and the objective per
    step.

    Starts from evenly spaced vectors in order of size, so it draws no random number. A centroid
    that nobody chose moves to the vector that is coded worst.
    """
    stride = -(-len(vectors) // FIT_VECTORS)
    vectors, weights = vectors[::stride], weights[::stride]
    # The sign of the first entry sets opposite vectors of one size apart.
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
    """Return the centroid at least weighted distance of each vector (n, v): (n,) int64."""
    # |x - c|² without |x|², which is the same for all centroids.
    squares, doubles = centroids.square().T, (2 * centroids).T
    indices = [
        (w @ squares - (w * x) @ doubles).argmin(1)
        for x, w in zip(vectors.split(CHUNK_VECTORS), weights.split(CHUNK_VECTORS), strict=True)
    ]
    return torch.cat(indices)


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"i": (rows, vectors) uint8, "c": (k, v) float32, "s": (rows,) float32}, and the parts
    of `encode`.
    """
    del meta, shape
    tensors = {}
    for name, array in parts.items():
        values = array.astype(np.float32) if array.dtype == np.float16 else array
        tensors[name] = torch.from_numpy(
            (values.astype(np.int32) if name == "o" else values).copy()
        )
    return tensors


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    del meta

    def entries(book: str, indices: str) -> Tensor:
        chosen = tensors[indices] if rows is None else tensors[indices][rows]
        return tensors[book].float()[chosen.int()].flatten(1)

    values = entries("c", "i")
    if "r" in tensors:
        values = values + entries("d", "r")
    if "o" in tensors:
        apart, narrow = tensors["o"].long(), values
        values = narrow.new_empty(len(narrow), shape[1])
        values[:, apart] = entries("p", "x")
        values[:, _others(shape[1], apart)] = narrow[:, : shape[1] - len(apart)]
    scales = tensors["s"] if rows is None else tensors["s"][rows]
    return values[:, : shape[1]] * scales[:, None].float()
