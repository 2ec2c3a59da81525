"""k-bit integers: codes times a scale, in groups of columns or with one step per row.

Reads a matrix, optionally with the Hessian of the layer's inputs for error compensation. Two grids:
`step: 0` spans each group's range with 2^k levels (asymmetric or symmetric); `step > 0` uses a step
of that many row RMS and leaves the rate to the entropy coder, which at equal error is the cheaper
of the two. Source: GPTQ, arXiv:2210.17323; uniform scalar quantisation with entropy coding, Gish
and Pierce 1968.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from agent_forge.codecs.compensate import compensate
from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError


@dataclass(slots=True, kw_only=True)
class Settings:
    """bits: 2 to 8. group: columns per scale; 0 for the whole row. step: see above.

    asymmetric: whether each group has a zero point.
    """

    bits: int = 4
    group: int = 128
    asymmetric: bool = True
    step: float = 0.0
    compensate: bool = True

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError(f"codec intk: bits must be in 2..8, got {self.bits}")
        if self.group < 0 or self.step < 0:
            raise ConfigError(
                f"codec intk: group and step must not be negative, got {self.group} and {self.step}"
            )


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None
) -> tuple[Parts, dict[str, Any]]:
    """Return codes (rows, columns) uint8, scales and, if asymmetric, zero points (rows, groups)."""
    rows, columns = weight.shape
    group = settings.group if settings.group and not settings.step else columns
    grid = _row_step(settings) if settings.step else _range(settings)
    groups = -(-columns // group)
    scales, zeros = weight.new_empty(rows, groups), weight.new_empty(rows, groups)
    codes = torch.empty_like(weight, dtype=torch.uint8)
    top = 2**settings.bits - 1

    def fit(index: int, block: Tensor) -> None:
        scales[:, index], zeros[:, index] = grid(block)

    def quantise(block: Tensor, first: int) -> Tensor:
        scale, zero = scales[:, first // group, None], zeros[:, first // group, None]
        code = (block / scale + zero).round_().clamp_(0, top)
        codes[:, first : first + block.shape[1]] = code.to(torch.uint8)
        return (code - zero) * scale

    # Grids are fitted to the weights as trained: refitting them to the compensated weights gained
    # nothing on real layers.
    for index, first in enumerate(range(0, columns, group)):
        fit(index, weight[:, first : first + group].float())
        if hessian is None or not settings.compensate:
            quantise(weight[:, first : first + group].float(), first)
    if hessian is not None and settings.compensate:
        compensate(weight, hessian, quantise)
    parts: Parts = {"q": codes.cpu().numpy(), "s": scales.half().cpu().numpy()}
    if settings.asymmetric and not settings.step:
        parts["z"] = zeros.to(torch.uint8).cpu().numpy()
    return parts, {"g": group, "k": settings.bits}


def _range(settings: Settings) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    top = 2**settings.bits - 1

    def grid(block: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale and zero point (rows,) that cover the group's range, zero included."""
        if settings.asymmetric:
            low, high = block.amin(1).clamp_max(0), block.amax(1).clamp_min(0)
            scale = _half((high - low) / top)
            return scale, (-low / scale).round().clamp(0, top)
        half_range = 2 ** (settings.bits - 1) - 1
        return _half(block.abs().amax(1) / half_range), block.new_full(
            (len(block),), float(half_range + 1)
        )

    return grid


def _row_step(settings: Settings) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def grid(block: Tensor) -> tuple[Tensor, Tensor]:
        """Return a step of `settings.step` RMS per row, widened where the largest code would not
        fit.
        """
        half_range = 2 ** (settings.bits - 1) - 1
        rms = block.square().mean(1).sqrt()
        scale = torch.maximum(settings.step * rms, block.abs().amax(1) / half_range)
        return _half(scale), block.new_full((len(block),), float(half_range + 1))

    return grid


def _half(scale: Tensor) -> Tensor:
    """Round scales to float16, as stored. A zero scale becomes the smallest normal number."""
    return scale.clamp(6.2e-5, 6.5e4).half().float()


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"q": (rows, groups·group) uint8, "s" and "z": (rows, groups) float32}."""
    scales = torch.from_numpy(parts["s"].copy()).float()
    middle = float(2 ** (meta["k"] - 1))
    zeros = (
        torch.from_numpy(parts["z"].copy()).float()
        if "z" in parts
        else torch.full_like(scales, middle)
    )
    codes = torch.nn.functional.pad(torch.from_numpy(parts["q"].copy()), (0, -shape[1] % meta["g"]))
    return {"q": codes, "s": scales, "z": zeros}


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    codes, scales, zeros = (
        tensors[key] if rows is None else tensors[key][rows] for key in ("q", "s", "z")
    )
    values = codes.float().view(len(codes), -1, meta["g"])
    values.sub_(zeros[..., None].float()).mul_(scales[..., None].float())
    return values.view(len(codes), -1)[:, : shape[1]]
