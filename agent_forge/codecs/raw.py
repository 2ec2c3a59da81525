"""Raw floats: every value in a float format, its byte planes entropy-coded.

A matrix has few different exponents, so their plane shrinks.

Reads a matrix, writes one part; lossless when the values fit the format. The baseline that the
other codecs must beat.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agent_forge.codecs.payload import Parts
from agent_forge.core.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True, kw_only=True)
class Settings:
    """dtype: the float format on disk and in memory."""

    dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(
                f"codec raw: dtype must be one of {', '.join(DTYPES)}, got '{self.dtype}'"
            )


def encode(
    weight: Tensor, settings: Settings, hessian: Tensor | None
) -> tuple[Parts, dict[str, Any]]:
    """Return the values' bit patterns; the Hessian plays no part."""
    del hessian
    values = weight.to(DTYPES[settings.dtype]).cpu().contiguous()
    pattern = values.view(torch.int32 if values.element_size() == 4 else torch.int16).numpy()
    return {"w": pattern.view(np.uint32 if values.element_size() == 4 else np.uint16)}, {
        "t": settings.dtype
    }


def unpack(parts: Parts, meta: dict[str, Any], shape: tuple[int, int]) -> dict[str, Tensor]:
    """Return {"w": (rows, columns) in the stored format}."""
    del shape
    signed = parts["w"].view(np.int32 if parts["w"].dtype.itemsize == 4 else np.int16)
    return {"w": torch.from_numpy(signed.copy()).view(DTYPES[meta["t"]])}


def dense(
    tensors: dict[str, Tensor], meta: dict[str, Any], shape: tuple[int, int], rows: Tensor | None
) -> Tensor:
    """Return the matrix, or the rows named by `rows` (n,): float32."""
    del meta, shape
    values = tensors["w"] if rows is None else tensors["w"][rows]
    return values.float()
