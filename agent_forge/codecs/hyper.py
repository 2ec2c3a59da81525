"""Hyper-compression: a pair of weights is one integer θ, a point on a line wound round a square.

The point of θ is (θ·a₁ mod 1, θ·a₂ mod 1). With an irrational direction the winding comes near
every point of the square, so θ alone codes the pair. Each group of columns has a scale, and pairs
fall into classes by size: smaller pairs get finer steps. Reads a matrix, with error compensation
when a Hessian is given. It is a lattice quantiser with an implicit codebook.
Source: arXiv:2409.00592. Direction: 1/ρ and 1/ρ² with ρ the plastic number, the evenest known pair
(Roberts 2018).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.codecs.compensate import compensate, pad_columns
from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError

PLASTIC = 1.3247179572447460260
CHUNK_PAIRS = 1 << 14


@dataclass(slots=True, kw_only=True)
class Settings:
    """bits: bits of θ, for two weights. group: columns per scale.

    classes: sizes of the square, each one `shrink` times the one before.
    """

    bits: int = 8
    classes: int = 2
    shrink: float = 0.5
    group: int = 128

    def __post_init__(self) -> None:
        if not 4 <= self.bits <= 8:
            raise ConfigError(f"codec hyper: bits must be in 4..8, got {self.bits}")
        if not 1 <= self.classes <= 8 or not 0 < self.shrink < 1:
            raise ConfigError(
                f"codec hyper: classes must be in 1..8 and shrink in (0, 1), got {self.classes}, "
                f"{self.shrink}"
            )
        if self.group < 2 or self.group % 2:
            raise ConfigError(
                f"codec hyper: group must be an even number of columns, got {self.group}"
            )


@lru_cache(maxsize=8)
def winding(bits: int) -> Tensor:
    """Return the points of θ = 0 ..

    2^bits - 1, moved to the square [-1, 1)²: (2^bits, 2) float32.
    """
    theta = np.arange(2**bits, dtype=np.float64)[:, None]
    points = (0.5 + theta * np.array([1 / PLASTIC, 1 / PLASTIC**2])) % 1.0
    return torch.from_numpy((2 * points - 1).astype(np.float32))


def covering_radius(bits: int, grid: int = 512) -> float:
    """Return how far a point of the square can lie from the nearest θ: the bound of the error.

    Measured on a grid of points.
    """
    axis = torch.linspace(-1, 1, grid)
    points = torch.cartesian_prod(axis, axis)
    nearest = torch.cat(
        [torch.cdist(part, winding(bits)).amin(1) for part in points.split(CHUNK_PAIRS)]
    )
    return float(nearest.max()) + 2 * 2**0.5 / (grid - 1) / 2


def nearest(pairs: Tensor, bits: int) -> Tensor:
    """Return θ of the point nearest to each pair (n, 2) in the square: (n,) int64."""
    points = winding(bits).to(pairs.device)
    norms = points.square().sum(1)
    return torch.cat([(norms - 2 * part @ points.T).argmin(1) for part in pairs.split(CHUNK_PAIRS)])


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None
) -> tuple[Parts, dict[str, Any]]:
    """Return θ and classes (rows, pairs) uint8, and scales (rows, groups) float16."""
    padded, wide = pad_columns(weight.float(), hessian, 2)
    rows, columns = padded.shape
    blocks = torch.nn.functional.pad(padded, (0, -columns % settings.group)).reshape(
        rows, -1, settings.group
    )
    scales = _half_up(blocks.abs().amax(-1))
    theta = padded.new_empty(rows, columns // 2, dtype=torch.long)
    classes = torch.empty_like(theta)

    def quantise(block: Tensor, first: int) -> Tensor:
        unit = block / scales[:, first // settings.group, None]
        size = unit.abs().amax(1).clamp_min(1e-30)
        level = (torch.log(size) / np.log(settings.shrink)).floor().clamp(0, settings.classes - 1)
        shrunk = settings.shrink ** level[:, None]
        code = nearest((unit / shrunk).clamp(-1, 1), settings.bits)
        theta[:, first // 2], classes[:, first // 2] = code, level.long()
        return (
            winding(settings.bits).to(code.device)[code]
            * shrunk
            * scales[:, first // settings.group, None]
        )

    if wide is None:
        for first in range(0, columns, 2):
            quantise(padded[:, first : first + 2], first)
    else:
        compensate(padded, wide, quantise, step=2)
    parts: Parts = {
        "o": theta.to(torch.uint8).cpu().numpy(),
        "m": classes.to(torch.uint8).cpu().numpy(),
        "s": scales.half().cpu().numpy(),
    }
    return parts, {"b": settings.bits, "h": settings.shrink, "g": settings.group}


def _half_up(values: Tensor) -> Tensor:
    """Round to float16 upwards, so that no weight leaves the square of its group."""
    half = values.clamp(6.2e-5, 6.4e4).half()
    bumped = torch.nextafter(half, torch.full_like(half, float("inf")))
    return torch.where(half.float() < values, bumped, half).float()


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"o", "m": (rows, pairs) uint8, padded to whole groups, "s": (rows, groups)}."""
    del shape
    missing = -parts["o"].shape[1] % (meta["g"] // 2)
    theta, classes = (
        torch.nn.functional.pad(torch.from_numpy(parts[key].copy()), (0, missing))
        for key in ("o", "m")
    )
    return {"o": theta, "m": classes, "s": torch.from_numpy(parts["s"].copy()).float()}


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    theta, classes, scales = (
        tensors[key] if rows is None else tensors[key][rows] for key in ("o", "m", "s")
    )
    points = winding(meta["b"]).to(theta.device)[theta.int()]  # (rows, pairs, 2)
    powers = float(meta["h"]) ** classes.float()
    sizes = powers.view(len(theta), scales.shape[1], -1) * scales[..., None].float()
    return (points * sizes.view(len(theta), -1, 1)).flatten(1)[:, : shape[1]]
