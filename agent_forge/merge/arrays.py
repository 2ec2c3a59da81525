"""Numbers as they are stored and as they are merged: safetensors dtypes, float32 and float64.

NumPy does not have bfloat16. Its values are the upper 16 bits of float32 values, and are held here
as uint16.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent_forge.core.errors import ConfigError, did_you_mean

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype of a safetensors file. stored: the NumPy dtype that holds its bytes."""

    code: str
    name: str
    stored: np.dtype[Any]
    is_floating_point: bool

    @property
    def itemsize(self) -> int:
        """Return the bytes of one number."""
        return self.stored.itemsize

    def __str__(self) -> str:
        return self.name


_KNOWN = (
    DType("F64", "float64", np.dtype("<f8"), True),
    DType("F32", "float32", np.dtype("<f4"), True),
    DType("F16", "float16", np.dtype("<f2"), True),
    DType("BF16", "bfloat16", np.dtype("<u2"), True),
    DType("I64", "int64", np.dtype("<i8"), False),
    DType("I32", "int32", np.dtype("<i4"), False),
    DType("I16", "int16", np.dtype("<i2"), False),
    DType("I8", "int8", np.dtype("i1"), False),
    DType("U8", "uint8", np.dtype("u1"), False),
    DType("BOOL", "bool", np.dtype("u1"), False),
)
BY_CODE = {dtype.code: dtype for dtype in _KNOWN}
BY_NAME = {dtype.name: dtype for dtype in _KNOWN}
FLOATS = tuple(dtype.name for dtype in _KNOWN if dtype.is_floating_point)


def float_dtype(name: str, where: str) -> DType:
    """Return the floating point dtype called `name`. Raises ConfigError on any other name."""
    if name not in FLOATS:
        raise ConfigError(
            f"{where} must be one of {', '.join(FLOATS)}, got '{name}'{did_you_mean(name, FLOATS)}"
        )
    return BY_NAME[name]


def decode(stored: Array, dtype: DType, target: Any) -> Array:
    """Return stored numbers as an array of `target` (np.float32 or np.float64); possibly a view: do
    not write into it.
    """
    if dtype.code == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32).astype(target, copy=False)
    return stored.astype(target, copy=False)


def encode(values: Array, dtype: DType) -> Array:
    """Return float32 or float64 values as they are stored.

    16-bit results are rounded by way of float32, half to even.
    """
    if dtype.code == "F64":
        return values.astype(np.float64, copy=False)
    single = values.astype(np.float32, copy=False)
    if dtype.code == "F32":
        return single
    if dtype.code == "F16":
        with np.errstate(over="ignore"):
            return single.astype(np.float16)
    bits = single.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += 0x7FFF
    rounded += bits
    rounded >>= 16
    return rounded.astype(np.uint16)


def all_finite(stored: Array, dtype: DType) -> bool:
    """Return whether stored numbers hold neither NaN nor infinity."""
    if not dtype.is_floating_point or not stored.size:
        return True
    if dtype.code == "BF16":
        return int((stored & 0x7FFF).max()) < 0x7F80
    return bool(np.isfinite(stored.max()) and np.isfinite(stored.min()))
