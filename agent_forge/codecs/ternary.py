"""Ternary weights: -s, 0 or s in groups of 128 columns, five trits per byte before entropy coding.

Reads a matrix; when it lies on such a grid already, the trits and scales are exactly its own.
Otherwise it is rounded, with error compensation when a Hessian is given. Source: BitNet b1.58,
arXiv:2402.17764 (there with one scale per tensor).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.codecs.compensate import compensate
from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError

SCALES = ("exact", "float32", "bfloat16", "float16")
# alternations of rounding and least squares, after which the error has settled
REFITS = 6


@dataclass(slots=True, kw_only=True)
class Settings:
    """group: columns that share a scale. scales: the format of the scales.

    "exact" is the first 16-bit format that loses nothing.
    """

    group: int = 128
    scales: str = "exact"

    def __post_init__(self) -> None:
        if self.scales not in SCALES:
            raise ConfigError(
                f"codec ternary: scales must be one of {', '.join(SCALES)}, got '{self.scales}'"
            )
        if self.group < 1:
            raise ConfigError(f"codec ternary: group must be at least 1 column, got {self.group}")


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None
) -> tuple[Parts, dict[str, Any]]:
    """Return trits (rows, columns) in 0..2 and scales (rows, groups)."""
    grid = on_grid(weight, settings.group)
    trits, scales = grid if grid is not None else _round(weight, settings, hessian)
    stored = {
        "q": (trits + 1).to(torch.uint8).cpu().numpy(),
        **_stored_scales(scales, settings.scales),
    }
    return stored, {"g": settings.group}


def _stored_scales(scales: Tensor, exact_scales: str) -> Parts:
    """Return {"b": bfloat16 bit patterns} or {"s": float16 or float32}."""
    if exact_scales == "bfloat16" or (
        exact_scales == "exact" and torch.equal(scales.bfloat16().float(), scales)
    ):
        return {"b": scales.bfloat16().view(torch.int16).cpu().numpy().view(np.uint16)}
    if exact_scales == "float16" or (
        exact_scales == "exact" and torch.equal(scales.half().float(), scales)
    ):
        return {"s": scales.half().cpu().numpy()}
    return {"s": scales.cpu().numpy()}


def on_grid(weight: Tensor, group: int) -> tuple[Tensor, Tensor] | None:
    """Return (trits int8, scales float32) if every group holds only -s, 0 and s, else None."""
    blocks = _blocks(weight, group)
    scales = blocks.abs().amax(-1)
    trits = blocks.sign()
    if not torch.equal(trits * scales[..., None], blocks):
        return None
    return trits.flatten(1)[:, : weight.shape[1]].to(torch.int8), scales


def _round(weight: Tensor, settings: Settings, hessian: Tensor | None) -> tuple[Tensor, Tensor]:
    """Round to the nearest grid: the scale of each group is fitted by least squares, in
    alternation.
    """
    columns = weight.shape[1]
    blocks = _blocks(weight, settings.group)
    scales = _fit(blocks)
    if hessian is None:
        return _trits(blocks, scales[..., None]).flatten(1)[:, :columns].to(torch.int8), scales
    trits = torch.zeros_like(weight, dtype=torch.int8)

    def quantise(block: Tensor, first: int) -> Tensor:
        scale = scales[:, first // settings.group, None]
        trits[:, first : first + 1] = _trits(block, scale).to(torch.int8)
        return trits[:, first : first + 1] * scale

    compensate(weight, hessian, quantise)
    return trits, scales


def _fit(blocks: Tensor) -> Tensor:
    """Return the scales of blocks (..., columns) of least squared error, starting from the mean
    size.
    """
    scale = blocks.abs().mean(-1)
    for _ in range(REFITS):
        trits = _trits(blocks, scale[..., None])
        scale = (blocks * trits).sum(-1) / trits.abs().sum(-1).clamp_min(1)
    return scale.half().float()


def _trits(blocks: Tensor, scale: Tensor) -> Tensor:
    return (blocks / scale.clamp_min(1e-12)).round().clamp(-1, 1)


def _blocks(weight: Tensor, group: int) -> Tensor:
    """Return (rows, groups, group) float32; a ragged last group is filled with zeros."""
    padded = torch.nn.functional.pad(weight.float(), (0, -weight.shape[1] % group))
    return padded.reshape(weight.shape[0], -1, group)


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"q": (rows, groups·group) int8, "s": (rows, groups) float32}."""
    trits = torch.from_numpy(parts["q"].copy()).to(torch.int8) - 1
    padded = torch.nn.functional.pad(trits, (0, -shape[1] % meta["g"]))
    if "b" in parts:
        scales = torch.from_numpy(parts["b"].view(np.int16).copy()).view(torch.bfloat16)
    else:
        scales = torch.from_numpy(parts["s"].copy())
    return {"q": padded, "s": scales.float()}


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    trits, scales = (tensors[key] if rows is None else tensors[key][rows] for key in ("q", "s"))
    values = trits.float().view(len(trits), -1, meta["g"])
    return (values.mul_(scales[..., None].float())).view(len(trits), -1)[:, : shape[1]]
